//! Identifiers: parsed at the edge, trusted afterwards.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;
use uuid::Uuid;

/// The id of an order: a `UUIDv7` (RFC 9562), so that new rows are adjacent in every index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, format = "uuid", example = "0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10")]
pub struct OrderId(pub Uuid);

impl OrderId {
    /// A new id; 74 of its bits are random.
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// Parses the 36-character form only, so that an order has one URL.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let id = (text.len() == 36).then(|| Uuid::try_parse(text).ok()).flatten();
        id.map(Self).ok_or("must be a UUID such as 0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10")
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The id of a customer: the e-mail address from the gateway. It is compared exactly, because case folding could merge
/// two accounts.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(
    value_type = String,
    max_length = 254,
    pattern = r"^[^@,\s\u0000-\u001F\u007F-\u009F\uFFFD]+@[^@,\s\u0000-\u001F\u007F-\u009F\uFFFD]+$",
    example = "user@example.com"
)]
pub struct CustomerId(String);

impl CustomerId {
    /// RFC 5321, 4.5.3.1.3: a path is at most 256 octets, two of them angle brackets.
    pub const MAX_BYTES: usize = 254;

    /// Accepts `local@domain` with letters of any script (RFC 6531). Refuses commas, which proxies use to join repeated
    /// headers, and the replacement character, which stands for bytes that are not UTF-8.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const RULE: &str = "must be an e-mail address of at most 254 bytes, without commas, white space and control characters";
        let is_legal =
            |c: char| !c.is_control() && !c.is_whitespace() && c != ',' && c != char::REPLACEMENT_CHARACTER;
        let visible = text.chars().all(is_legal);
        let (local, domain) = text.split_once('@').ok_or(RULE)?;
        let shaped = !local.is_empty() && !domain.is_empty() && !domain.contains('@');
        if !visible || !shaped || text.len() > Self::MAX_BYTES {
            return Err(RULE);
        }
        Ok(Self(text.to_owned()))
    }

    /// The address as the gateway sent it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Hides the address from logs.
impl fmt::Debug for CustomerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomerId(…)")
    }
}

/// The id of a product at the Product Service. It is a path segment of URLs, so its characters need no escaping.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, format = "product-id", pattern = r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$", example = "PROD123")]
pub struct ProductId(String);

impl ProductId {
    /// The maximum length in bytes.
    pub const MAX_BYTES: usize = 64;

    /// Accepts 1 to 64 letters, digits and `-` `_` `.` `:`, starting with a letter or a digit (so never `..`).
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let starts_well = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte));
        if !starts_well || !plain || text.len() > Self::MAX_BYTES {
            return Err(
                "must be 1 to 64 letters, digits, '-', '_', '.' or ':', and start with a letter or a digit",
            );
        }
        Ok(Self(text.to_owned()))
    }

    /// The id as the client sent it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProductId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ProductId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ProductId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a product id as a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ProductId, E> {
                ProductId::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_36_character_form_of_an_order_id_is_accepted() {
        let id = OrderId::generate();
        assert_eq!(OrderId::parse(&id.to_string()), Ok(id));
        for bad in
            ["", "1", "../my", &id.0.simple().to_string(), &format!("{{{id}}}"), &id.0.urn().to_string()]
        {
            assert!(OrderId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_customer_is_one_plain_email_address() {
        for good in ["user+tag@example.com", "用户@例え.jp", "jörg@müller.example", "é@b"] {
            assert_eq!(CustomerId::parse(good).unwrap().as_str(), good);
        }
        let long = format!("{}@example.com", "a".repeat(250));
        for bad in [
            "",
            "user",
            "@example.com",
            "user@",
            "a@b@c",
            "a@b,c@d",
            "a b@c",
            "a@b\u{7f}",
            "a\u{a0}b@c",
            "a@b\u{85}",
            "\u{fffd}@b",
            &long,
        ] {
            assert!(CustomerId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_product_id_cannot_leave_its_path_segment() {
        assert!(ProductId::parse("PROD-1.2_a:b").is_ok());
        let long = "P".repeat(65);
        for bad in ["", ".", "..", "../x", "a/b", "a b", "a%2fb", "a?b", "a#b", "a\\b", "é", "a\0", &long] {
            assert!(ProductId::parse(bad).is_err(), "{bad}");
        }
    }
}
