//! Parses answers of the Product Service strictly, because orders are priced by them.

use reqwest::Response;
use serde::de::{self, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::{Number, Value};

use super::Product;
use super::failure::{Failure, InvalidAnswer};
use crate::domain::{Money, ProductId};
use crate::json::Object;

/// The longest body that is read. A product takes less than a kilobyte.
const MAX_BYTES: usize = 256 * 1024;

/// Reads the product in the body of a 200.
pub(super) async fn read(response: Response, id: &ProductId) -> Result<Product, Failure> {
    Ok(parse(&body(response).await?, id)?)
}

/// Reads a body up to [`MAX_BYTES`].
pub(super) async fn body(mut response: Response) -> Result<Vec<u8>, Failure> {
    let announced = response.content_length().map_or(Ok(0), usize::try_from);
    let announced = announced
        .ok()
        .filter(|length| *length <= MAX_BYTES)
        .ok_or(InvalidAnswer::TooLong { limit: MAX_BYTES })?;
    let mut body = Vec::with_capacity(announced);
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_BYTES {
            return Err(InvalidAnswer::TooLong { limit: MAX_BYTES }.into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The fields of a product that are read; others are ignored.
#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    id: Value,
    price: Money,
    stock: Stock,
}

fn parse(body: &[u8], id: &ProductId) -> Result<Product, InvalidAnswer> {
    let Object(body): Object<Body> = serde_json::from_slice(body).map_err(|error| invalid(body, error))?;
    if body.id.as_str().is_some_and(|answered| answered != id.as_str()) {
        return Err(InvalidAnswer::OtherProduct);
    }
    Ok(Product { price: body.price, stock: body.stock.0 })
}

/// Classifies a parse error. Only a failure is parsed twice; a valid answer is parsed once.
fn invalid(body: &[u8], error: serde_json::Error) -> InvalidAnswer {
    serde_json::from_slice::<IgnoredAny>(body)
        .map_or_else(InvalidAnswer::NotJson, |_| InvalidAnswer::Malformed(error))
}

/// A stock is an integer of any size; a negative one counts as 0.
struct Stock(u64);

impl<'de> Deserialize<'de> for Stock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = Number::deserialize(deserializer)?;
        let text = number.as_str();
        let negative = text.strip_prefix('-');
        if !negative.unwrap_or(text).bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(de::Error::custom("the stock is not a whole number"));
        }
        match negative {
            Some(_) => Ok(Self(0)),
            None => text.parse().map(Self).map_err(|_| de::Error::custom("the stock is too large")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(body: &str) -> Result<Product, InvalidAnswer> {
        parse(body.as_bytes(), &ProductId::parse("PROD123").unwrap())
    }

    fn product(price: &str, stock: u64) -> Product {
        Product { price: Money::parse(price).unwrap(), stock }
    }

    #[test]
    fn a_product_of_the_platform_is_parsed() {
        let body = r#"{"id":"PROD123","name":"Phone","description":"\"x\"","price":2499.10,"stock":50,"sku":"S",
            "brand":null,"category":{"id":"OTHER","price":1,"stock":[]}}"#;
        let read = parsed(body).unwrap();
        assert_eq!(read, product("2499.10", 50));
        assert_eq!(read.price.to_string(), "2499.10");
    }

    #[test]
    fn harmless_variants_are_accepted() {
        for (body, read) in [
            (r#"{"price":0,"stock":0}"#, product("0", 0)),
            (r#" {"stock":7,"price":0.5} "#, product("0.5", 7)),
            (r#"{"id":null,"price":1,"stock":1}"#, product("1", 1)),
            (r#"{"id":4711,"price":1,"stock":1}"#, product("1", 1)),
            (r#"{"id":"PROD\u0031\u0032\u0033","price":1,"stock":1}"#, product("1", 1)),
            (r#"{"price":1e3,"stock":1}"#, product("1000", 1)),
            (r#"{"price":1,"stock":-3}"#, product("1", 0)),
            (r#"{"price":1,"stock":-0}"#, product("1", 0)),
            (r#"{"price":1,"stock":-99999999999999999999}"#, product("1", 0)),
            (
                r#"{"price":999999999999.99,"stock":18446744073709551615}"#,
                product("999999999999.99", u64::MAX),
            ),
        ] {
            assert_eq!(parsed(body).unwrap(), read, "{body}");
        }
    }

    #[test]
    fn invalid_answers_are_refused() {
        let deep = format!(r#"{{"id":{}1{},"price":1,"stock":1}}"#, "[".repeat(1_000), "]".repeat(1_000));
        for body in [
            "",
            "null",
            "<html>maintenance</html>",
            r#"["PROD123",2499,50]"#,
            r#"[{"price":1,"stock":1}]"#,
            r#""price""#,
            "{}",
            r#"{"price":1}"#,
            r#"{"stock":1}"#,
            r#"{"price":1,"stock":1"#,
            r#"{"price":1,"stock":1}{"price":2,"stock":2}"#,
            r#"{"price":null,"stock":1}"#,
            r#"{"price":"2499","stock":1}"#,
            r#"{"price":-0.01,"stock":1}"#,
            r#"{"price":2499.105,"stock":1}"#,
            r#"{"price":1000000000000,"stock":1}"#,
            r#"{"price":1e400,"stock":1}"#,
            r#"{"price":NaN,"stock":1}"#,
            r#"{"price":{"amount":1},"stock":1}"#,
            r#"{"price":1,"stock":null}"#,
            r#"{"price":1,"stock":"50"}"#,
            r#"{"price":1,"stock":1.5}"#,
            r#"{"price":1,"stock":1.0}"#,
            r#"{"price":1,"stock":1e1}"#,
            r#"{"price":1,"stock":true}"#,
            r#"{"price":1,"stock":18446744073709551616}"#,
            r#"{"id":"PROD124","price":1,"stock":1}"#,
            r#"{"id":"prod123","price":1,"stock":1}"#,
            r#"{"id":"","price":1,"stock":1}"#,
            r#"{"price":1,"price":2,"stock":1}"#,
            r#"{"price":1,"stock":1,"stock":2}"#,
            r#"{"id":"PROD123","id":"PROD124","price":1,"stock":1}"#,
            &deep,
        ] {
            assert!(parsed(body).is_err(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn every_price_and_stock_is_parsed_exactly(cents in 0_u64..100_000_000_000_000, stock: i64) {
            let price = format!("{}.{:02}", cents / 100, cents % 100);
            let read = parsed(&format!(r#"{{"price":{price},"stock":{stock}}}"#));
            prop_assert_eq!(read.unwrap(), product(&price, u64::try_from(stock).unwrap_or(0)));
        }

        #[test]
        fn a_fraction_of_a_cent_is_never_rounded(whole in 0_u32.., thousandth in 1_u32..10) {
            let body = format!(r#"{{"price":{whole}.00{thousandth},"stock":1}}"#);
            prop_assert!(parsed(&body).is_err());
        }
    }
}
