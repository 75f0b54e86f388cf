//! JSON as strictly as RFC 8259 allows: duplicate keys are refused (RFC 7493, 2.3), at every depth.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_path_to_error::{Path, Segment};

/// Any JSON text without duplicate keys; only its errors matter.
///
/// It also checks the unknown fields, which are ignored later. `serde_json` limits the depth to 128.
pub(super) struct WellFormed;

impl<'de> Deserialize<'de> for WellFormed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = WellFormed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WellFormed, A::Error> {
        let mut keys = HashSet::new();
        while let Some(Key(key)) = map.next_key()? {
            map.next_value::<WellFormed>()?;
            if !keys.insert(key) {
                return Err(de::Error::custom("an object has a duplicate key"));
            }
        }
        Ok(WellFormed)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<WellFormed, A::Error> {
        while sequence.next_element::<WellFormed>()?.is_some() {}
        Ok(WellFormed)
    }

    fn visit_bool<E>(self, _: bool) -> Result<WellFormed, E> {
        Ok(WellFormed)
    }

    fn visit_i64<E>(self, _: i64) -> Result<WellFormed, E> {
        Ok(WellFormed)
    }

    fn visit_u64<E>(self, _: u64) -> Result<WellFormed, E> {
        Ok(WellFormed)
    }

    fn visit_f64<E>(self, _: f64) -> Result<WellFormed, E> {
        Ok(WellFormed)
    }

    fn visit_str<E>(self, _: &str) -> Result<WellFormed, E> {
        Ok(WellFormed)
    }

    fn visit_unit<E>(self) -> Result<WellFormed, E> {
        Ok(WellFormed)
    }
}

/// A key. It is copied only if it has escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// The JSON pointer (RFC 6901) of an error.
pub(super) fn pointer(path: &Path) -> String {
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(format!("/{index}")),
            Segment::Map { key } => Some(format!("/{}", key.replace('~', "~0").replace('/', "~1"))),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_well_formed(text: &str) -> bool {
        serde_json::from_str::<WellFormed>(text).is_ok()
    }

    #[test]
    fn any_json_without_duplicate_keys_is_well_formed() {
        for good in ["{}", "[1,-2,3.5,1e400,null,true,\"x\"]", r#"{"a":{"b":1},"c":{"b":2}}"#] {
            assert!(is_well_formed(good), "{good}");
        }
    }

    #[test]
    fn a_duplicate_is_found_among_many_keys_and_behind_escapes() {
        let keys = |last: &str| {
            let first: Vec<String> = (0..100).map(|number| format!("\"k{number}\":{number}")).collect();
            format!("{{{},\"{last}\":0}}", first.join(","))
        };
        assert!(is_well_formed(&keys("k100")));
        for duplicate in ["k0", "k15", "k16", "k99", r"\u006b0"] {
            assert!(!is_well_formed(&keys(duplicate)), "{duplicate}");
        }
        assert!(!is_well_formed(r#"{"a":1,"\u0061":2}"#));
    }

    #[test]
    fn duplicate_keys_malformed_text_and_deep_nesting_are_refused() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        let bad =
            ["", "{", r#"{"a":1,"a":2}"#, r#"[{"x":{"a":1,"a":1}}]"#, r#""\ud800""#, "01", "[1,]", &deep];
        for text in bad {
            assert!(!is_well_formed(text), "{text}");
        }
    }
}
