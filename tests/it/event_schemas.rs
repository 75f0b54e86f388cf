//! The events as `/asyncapi.json` describes them, and their compatibility with consumers of the last release.
//! (`support/kafka.rs` checks every record that a test reads against its schema.)

use serde_json::{Value, json};

use crate::support::{Shop, event_document, event_faults};

/// The document of the last release. Each release replaces it: `curl …/asyncapi.json`, with the default topics.
const RELEASED: &str = include_str!("../released/asyncapi-0.1.0.json");

#[tokio::test]
async fn the_document_names_the_configured_topics() {
    let shop = Shop::start().await;
    let served = shop.call("GET", "/asyncapi.json").send().await.expect(200).body;
    assert_eq!(served["channels"]["orderEvents"]["address"], shop.topic.name);
    assert_eq!(served["channels"]["paymentEvents"]["address"], shop.payments.name);
    assert_eq!(served["components"], event_document()["components"]);
}

#[test]
fn every_example_matches_its_schema() {
    let document = event_document();
    let messages = document["components"]["messages"].as_object().unwrap();
    assert_eq!(messages.len(), 4);
    for message in messages.values() {
        let example = &message["examples"][0]["payload"];
        assert_eq!(event_faults(example), Vec::<String>::new(), "{example}");
        let mut other = example.clone();
        other["entityId"] = json!(7);
        assert_ne!(event_faults(&other), Vec::<String>::new(), "{other}");
    }
}

#[test]
fn consumers_of_the_last_release_can_read_the_events_of_this_one() {
    let released: Value = serde_json::from_str(RELEASED).unwrap();
    assert_eq!(what_breaks(&released, &event_document()), Vec::<String>::new());
}

#[test]
fn an_incompatible_change_is_found() {
    let released: Value = serde_json::from_str(RELEASED).unwrap();
    let schema = "/components/schemas/OrderPlaced";
    let changes: [(&str, Value); 5] = [
        ("/components/schemas/PlacedMetadata/required", json!(["eventId", "sequence", "status"])),
        ("/components/schemas/Money/type", json!("string")),
        ("/components/schemas/OrderStatus/enum", json!(["CREATED", "CONFIRMED", "CANCELLED", "PAID"])),
        ("/components/messages/OrderPlaced/headers/properties/ce_type/const", json!("order.placed.v2")),
        ("/components/schemas/PaymentFailed/required", json!(["eventType", "entityId", "currency"])),
    ];
    for (place, value) in changes {
        let mut broken = released.clone();
        *broken.pointer_mut(place).unwrap_or_else(|| panic!("{place}")) = value;
        assert_eq!(what_breaks(&released, &broken).len(), 1, "{place}");
    }
    let mut without = released.clone();
    without.pointer_mut(schema).unwrap()["properties"].as_object_mut().unwrap().remove("amount");
    assert_eq!(what_breaks(&released, &without).len(), 1);
    // Consumers ignore new members and new event types.
    let mut more = released.clone();
    more.pointer_mut(schema).unwrap()["properties"]["currency"] = json!({"type": "string"});
    more["components"]["messages"]["OrderShipped"] = more["components"]["messages"]["OrderPlaced"].clone();
    assert_eq!(what_breaks(&released, &more), Vec::<String>::new());
}

/// The incompatible changes from the released document to this one, one per line.
fn what_breaks(released: &Value, now: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for channel in ["orderEvents", "paymentEvents"] {
        let messages = format!("/channels/{channel}/messages");
        for name in released.pointer(&messages).unwrap().as_object().unwrap().keys() {
            if now.pointer(&format!("{messages}/{name}")).is_none() {
                found.push(format!("{channel} has no {name} any more"));
            }
        }
    }
    compare(&released["components"], &now["components"], "", &mut found);
    found
}

/// Every released statement must remain. A list of required members may grow in events that the service writes, and
/// shrink in events that it reads; no other list may change.
fn compare(released: &Value, now: &Value, place: &str, found: &mut Vec<String>) {
    match (released, now) {
        (Value::Object(before), Value::Object(_)) => {
            // Text for people, which no program depends on.
            let read_by_people =
                |name: &str| ["description", "example", "examples", "title", "summary"].contains(&name);
            for (name, before) in before {
                // A property may have any name.
                let is_property = place.ends_with("/properties");
                if !is_property && read_by_people(name) {
                    continue;
                }
                let place = format!("{place}/{name}");
                match now.get(name) {
                    None => found.push(format!("{place} is gone")),
                    Some(_) if !is_property && name == "required" => {
                        required(before, &now["required"], &place, found);
                    }
                    Some(now) => compare(before, now, &place, found),
                }
            }
        }
        (before, now) if before == now => {}
        (before, now) => found.push(format!("{place} was {before} and is {now}")),
    }
}

fn required(before: &Value, now: &Value, place: &str, found: &mut Vec<String>) {
    let (before, now) = (before.as_array().unwrap(), now.as_array().unwrap());
    let we_read = place.starts_with("/schemas/Payment");
    let (must_have, has) = if we_read { (now, before) } else { (before, now) };
    if let Some(name) = must_have.iter().find(|name| !has.contains(name)) {
        found.push(format!("{place}: {name} is {}", if we_read { "new" } else { "gone" }));
    }
}
