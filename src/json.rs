//! Reading JSON from other systems.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A JSON object. serde's derive also accepts an array of the fields, which would make the order of the fields a part
/// of the contract.
#[derive(Debug)]
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Line {
        quantity: u32,
    }

    fn quantity(text: &str) -> Result<u32, serde_json::Error> {
        serde_json::from_str(text).map(|Object(Line { quantity })| quantity)
    }

    #[test]
    fn an_object_is_accepted_and_an_array_of_its_fields_is_refused() {
        assert_eq!(quantity(r#" {"other":null,"quantity":2} "#).unwrap(), 2);
        for bad in ["[2]", "2", "null", r#""quantity""#, "", "{}", r#"{"quantity":2,"quantity":3}"#] {
            assert!(quantity(bad).is_err(), "{bad}");
        }
    }
}
