//! The schemas of the events, as `/asyncapi.json` publishes them.

use std::collections::HashMap;
use std::sync::OnceLock;

use jsonschema::Validator;
use order_service::api::{Topics, asyncapi};
use serde_json::{Map, Value, json};

use super::Record;

/// The document with the default topics.
pub(crate) fn event_document() -> Value {
    asyncapi(&Topics { orders: "order-events", payments: "payment-events" })
}

/// The schemas of one message: of its payload and, if it has any, of its headers.
struct Schemas {
    payload: Validator,
    headers: Option<Validator>,
}

/// The schemas by `eventType`.
fn schemas() -> &'static HashMap<String, Schemas> {
    static ALL: OnceLock<HashMap<String, Schemas>> = OnceLock::new();
    ALL.get_or_init(|| {
        let document = event_document();
        let validator = |rule: &Value| {
            let schema = json!({"allOf": [rule], "components": document["components"]});
            jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
        };
        let messages = document["components"]["messages"].as_object().unwrap().values();
        let read = messages.map(|message| {
            let (payload, headers) = (validator(&message["payload"]), message.get("headers").map(validator));
            (message["name"].as_str().unwrap().to_owned(), Schemas { payload, headers })
        });
        read.collect()
    })
}

fn faults(validator: &Validator, value: &Value) -> Vec<String> {
    validator.iter_errors(value).map(|error| format!("{error} at {}", error.instance_path())).collect()
}

/// The violations of an event's schema.
pub(crate) fn event_faults(event: &Value) -> Vec<String> {
    let schemas = event["eventType"].as_str().and_then(|name| schemas().get(name));
    schemas
        .map_or_else(|| vec![format!("no message has this type: {event}")], |all| faults(&all.payload, event))
}

/// Fails if a record of the order events violates its schemas.
#[track_caller]
pub(crate) fn expect_described(record: &Record) {
    let mut found = event_faults(&record.value());
    let headers: Map<String, Value> =
        record.headers.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let schemas = &schemas()[&record.event_type()];
    found.extend(schemas.headers.iter().flat_map(|rule| faults(rule, &Value::Object(headers.clone()))));
    assert_eq!(found, Vec::<String>::new(), "{record:#?}");
}
