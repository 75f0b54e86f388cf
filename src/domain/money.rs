//! Amounts: exact decimals from the wire to the column and back (invariant 6).

use std::fmt;

use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use utoipa::ToSchema;

/// An amount from 0 to 999,999,999,999.99 with at most two decimals.
///
/// It keeps its number of decimals: 2499.10 stays 2499.10, and 2499 stays 2499. The currency is always INR; the
/// contract does not write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ToSchema)]
#[schema(value_type = f64, format = "decimal", minimum = 0, maximum = 999_999_999_999.99, example = 2499)]
pub struct Money(Decimal);

const TOO_PRECISE: &str = "has more than two decimals";

impl Money {
    /// Zero.
    pub const ZERO: Self = Self(Decimal::ZERO);
    /// The largest amount, 999,999,999,999.99; the columns check the same bound.
    pub const MAX: Self = Self(Decimal::from_parts(276_447_231, 23_283, 0, false, 2));

    /// The maximum length of a text. A `Decimal` has 28 digits without rounding.
    const MAX_TEXT: usize = 28;

    /// Checks the bounds.
    pub fn new(decimal: Decimal) -> Result<Self, &'static str> {
        let shortest = decimal.normalize();
        if shortest.is_zero() {
            return Ok(Self::ZERO);
        }
        if shortest.is_sign_negative() {
            return Err("is negative");
        }
        if shortest.scale() > 2 {
            return Err(TOO_PRECISE);
        }
        if shortest > Self::MAX.0 {
            return Err("is beyond 999,999,999,999.99");
        }
        Ok(Self(if decimal.scale() > 2 { shortest } else { decimal }))
    }

    /// Parses a JSON number (RFC 8259, section 6), with or without an exponent, never through a float.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > Self::MAX_TEXT {
            return Err(TOO_PRECISE);
        }
        let decimal = Decimal::from_str_exact(text)
            .or_else(|_| Decimal::from_scientific(text))
            .map_err(|_| "is not a decimal number")?;
        Self::new(decimal)
    }

    /// `self × quantity`. `None` beyond the bounds.
    pub fn times(self, quantity: u32) -> Option<Self> {
        self.0.checked_mul(Decimal::from(quantity)).and_then(|product| Self::new(product).ok())
    }

    /// `self + other`. `None` beyond the bounds.
    pub fn plus(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).and_then(|sum| Self::new(sum).ok())
    }

    /// The amount as a column value.
    pub fn decimal(self) -> Decimal {
        self.0
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let number: serde_json::Number = self.0.to_string().parse().map_err(ser::Error::custom)?;
        number.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = serde_json::Number::deserialize(deserializer)?;
        Self::parse(number.as_str()).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn money(text: &str) -> Money {
        Money::parse(text).unwrap_or_else(|error| panic!("{text} {error}"))
    }

    #[test]
    fn a_price_keeps_its_number_of_decimals() {
        for text in ["2499.10", "2499", "0", "0.5", "999999999999.99"] {
            assert_eq!(serde_json::to_string(&money(text)).ok().as_deref(), Some(text));
        }
        assert_eq!(money("999999999999.99"), Money::MAX);
        assert_eq!(money("2.5E+3").to_string(), "2500");
        assert_eq!(money("2499.1000").to_string(), "2499.1");
        assert_eq!(money("-0.00"), Money::ZERO);
    }

    #[test]
    fn an_invalid_amount_is_refused_with_its_reason() {
        assert_eq!(Money::parse("-0.01"), Err("is negative"));
        assert_eq!(Money::parse("0.001"), Err(TOO_PRECISE));
        assert_eq!(Money::parse("0.1000000000000000000000000000000000001"), Err(TOO_PRECISE));
        assert_eq!(Money::parse("1000000000000"), Err("is beyond 999,999,999,999.99"));
        assert_eq!(Money::parse("1e300"), Err("is not a decimal number"));
        assert_eq!(Money::parse("12,5"), Err("is not a decimal number"));
        for json in ["\"12\"", "null", "true", "{}", "[]"] {
            assert!(serde_json::from_str::<Money>(json).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn sums_and_products_are_exact_to_the_cent(cents in 0_u64..99_999_999, quantity in 1_u32..10_000) {
            let price = Money::new(Decimal::new(cents.cast_signed(), 2)).map_err(|e| TestCaseError::fail(e.to_string()))?;
            let expected = u128::from(cents) * u128::from(quantity);
            let total = price.times(quantity).and_then(|line| line.plus(price)).map(|sum| sum.decimal() * Decimal::from(100));
            prop_assert_eq!(total, Some(Decimal::from(expected + u128::from(cents))));
        }

        #[test]
        fn an_amount_survives_json(cents in 0_u64..100_000_000_000_000, scale in 0_u32..3) {
            let amount = Money::new(Decimal::new((cents / 100).cast_signed(), scale)).map_err(|e| TestCaseError::fail(e.to_string()))?;
            let json = serde_json::to_string(&amount).map_err(|e| TestCaseError::fail(e.to_string()))?;
            let back: Money = serde_json::from_str(&json).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(back.to_string(), amount.to_string());
        }
    }
}
