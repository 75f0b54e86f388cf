//! The lines of an order, as requested and as sold.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

use super::{Money, ProductId};

/// The quantity of a product, 1 to 10,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = u32, minimum = 1, maximum = 10_000, example = 2)]
pub struct Quantity(u32);

impl Quantity {
    /// The maximum quantity of one product in one order.
    pub const MAX: u32 = 10_000;

    /// Checks the bounds.
    pub fn new(count: u64) -> Result<Self, &'static str> {
        u32::try_from(count)
            .ok()
            .filter(|count| (1..=Self::MAX).contains(count))
            .map(Self)
            .ok_or("must be a whole number from 1 to 10000")
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }

    fn plus(self, other: Self) -> Result<Self, &'static str> {
        Self::new(u64::from(self.0) + u64::from(other.0))
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Quantity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number from 1 to 10000")
            }

            fn visit_u64<E: de::Error>(self, count: u64) -> Result<Quantity, E> {
                Quantity::new(count).map_err(E::custom)
            }
        }
        deserializer.deserialize_u64(Visitor)
    }
}

/// A line as requested.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestedLine {
    /// The product.
    pub product_id: ProductId,
    /// The quantity.
    pub quantity: Quantity,
}

/// The maximum number of lines in one order.
pub(crate) const MAX_LINES: usize = 100;

/// A broken rule of the lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLines {
    /// The index of the line that breaks it. `None` if the whole list breaks it.
    pub line: Option<usize>,
    pub rule: &'static str,
}

/// Checks the number of lines, and adds up the lines of one product at the position of the first.
///
/// Returns each merged line with the index of its first requested line.
pub(crate) fn merge_lines(requested: Vec<RequestedLine>) -> Result<Vec<(usize, RequestedLine)>, BadLines> {
    if requested.is_empty() || requested.len() > MAX_LINES {
        return Err(BadLines { line: None, rule: "must have 1 to 100 lines" });
    }
    let mut merged: Vec<(usize, RequestedLine)> = Vec::with_capacity(requested.len());
    for (index, line) in requested.into_iter().enumerate() {
        match merged.iter_mut().find(|(_, known)| known.product_id == line.product_id) {
            None => merged.push((index, line)),
            Some((_, known)) => {
                known.quantity = known.quantity.plus(line.quantity).map_err(|_| BadLines {
                    line: Some(index),
                    rule: "brings this product to more than 10000 in one order",
                })?;
            }
        }
    }
    Ok(merged)
}

/// A line as sold. Its price is the unit price at the moment of placing and never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = OrderLine)]
pub struct Line {
    /// The product.
    pub product_id: ProductId,
    /// The quantity.
    pub quantity: Quantity,
    /// The unit price.
    pub price: Money,
}

/// The total of the lines. `None` if it is greater than [`Money::MAX`].
pub(crate) fn total(lines: &[Line]) -> Option<Money> {
    lines.iter().try_fold(Money::ZERO, |sum, line| sum.plus(line.price.times(line.quantity.get())?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn requested(product: &str, quantity: u64) -> RequestedLine {
        RequestedLine {
            product_id: ProductId::parse(product).unwrap(),
            quantity: Quantity::new(quantity).unwrap(),
        }
    }

    #[test]
    fn a_quantity_is_a_whole_number_from_1_to_10000() {
        for good in ["1", "10000"] {
            assert!(serde_json::from_str::<Quantity>(good).is_ok(), "{good}");
        }
        for bad in ["0", "-1", "10001", "1.5", "1.0", "1e1", "\"2\"", "null", "99999999999999999999", "[1]"] {
            assert!(serde_json::from_str::<Quantity>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lines_of_one_product_are_merged_at_the_position_of_the_first() {
        let merged = merge_lines(vec![requested("A", 1), requested("B", 2), requested("A", 3)]).unwrap();
        assert_eq!(merged, [(0, requested("A", 4)), (1, requested("B", 2))]);
    }

    #[test]
    fn the_merged_quantity_of_a_product_has_the_same_limit() {
        let refused = merge_lines(vec![requested("A", 10_000), requested("A", 1)]);
        assert_eq!(refused.unwrap_err().line, Some(1));
    }

    #[test]
    fn an_order_has_1_to_100_lines() {
        assert!(merge_lines(Vec::new()).is_err());
        assert!(merge_lines(vec![requested("A", 1); 100]).is_ok());
        assert!(merge_lines(vec![requested("A", 1); 101]).is_err());
    }

    proptest! {
        #[test]
        fn merging_keeps_the_quantity_of_every_product(lines in prop::collection::vec((0_u8..5, 1_u64..50), 1..100)) {
            let asked: Vec<_> = lines.iter().map(|(product, count)| requested(&format!("P{product}"), *count)).collect();
            let merged = merge_lines(asked).unwrap();
            for product in 0_u8..5 {
                let id = format!("P{product}");
                let wanted: u64 = lines.iter().filter(|(p, _)| *p == product).map(|(_, count)| count).sum();
                let got: Vec<u64> = merged.iter().filter(|(_, line)| line.product_id.as_str() == id)
                    .map(|(_, line)| u64::from(line.quantity.get())).collect();
                prop_assert_eq!(got, if wanted == 0 { vec![] } else { vec![wanted] });
            }
        }

        #[test]
        fn the_total_is_the_exact_sum_in_cents(lines in prop::collection::vec((0_i64..1_000_000, 1_u64..10_000), 1..100)) {
            let sold: Vec<_> = lines.iter().enumerate().map(|(index, (cents, count))| Line {
                product_id: ProductId::parse(&format!("P{index}")).unwrap(),
                quantity: Quantity::new(*count).unwrap(),
                price: Money::new(rust_decimal::Decimal::new(*cents, 2)).unwrap(),
            }).collect();
            let cents: i128 = lines.iter().map(|(cents, count)| i128::from(*cents) * i128::from(*count)).sum();
            let expected = rust_decimal::Decimal::from_i128_with_scale(cents, 2);
            prop_assert_eq!(total(&sold).map(Money::decimal), Some(expected));
        }
    }
}
