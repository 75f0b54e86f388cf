//! The `OpenAPI` document, and the page that shows it.

use std::collections::BTreeSet;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{Description, Shop, admin};

#[tokio::test]
async fn the_document_is_public_and_cacheable() {
    let shop = Shop::start().await;
    for path in ["/openapi.json", "/v3/api-docs"] {
        let served = shop.call("GET", path).send().await.expect(200);
        assert_eq!(served.header("content-type"), Some("application/json"), "{path}");
        assert_eq!(served.body, Description::get().document, "{path}");
        let etag = served.header("etag").expect("an ETag").to_owned();
        for known in [etag.clone(), format!("W/{etag}"), format!("\"other\", {etag}"), "*".to_owned()] {
            let again = shop.call("GET", path).header("If-None-Match", &known).send().await.expect(304);
            assert_eq!((again.text.as_str(), again.header("etag")), ("", Some(etag.as_str())), "{known}");
        }
        shop.call("GET", path).header("If-None-Match", "\"other\"").send().await.expect(200);
        shop.call("POST", path).send().await.expect_problem(405, "method-not-allowed");
    }
}

#[test]
fn every_operation_has_an_id_a_summary_a_success_response_and_valid_links() {
    let document = &Description::get().document;
    let operations: Vec<(&String, &Value)> = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|item| item.as_object().unwrap().iter())
        .collect();
    let ids: BTreeSet<&str> =
        operations.iter().map(|(_, operation)| operation["operationId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), operations.len(), "{ids:?}");
    let mut links = 0;
    for (_, operation) in &operations {
        let id = &operation["operationId"];
        assert!(operation["summary"].is_string(), "{id}");
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.keys().any(|status| status.starts_with('2')), "{id}");
        assert!(responses.contains_key("500"), "{id}");
        for parameter in operation["parameters"].as_array().unwrap() {
            assert!(parameter["description"].is_string(), "{id} {parameter}");
        }
        for (status, response) in responses {
            assert_ne!(response["description"].as_str(), Some(""), "{id} {status}");
            for link in response["links"].as_object().into_iter().flat_map(|links| links.values()) {
                links += 1;
                assert!(ids.contains(link["operationId"].as_str().unwrap()), "{id} {link}");
            }
        }
    }
    assert_eq!(links, 11);
}

/// The examples next to a schema, each with the JSON pointer of the schema.
fn examples(value: &Value, pointer: &str, found: &mut Vec<(String, Value)>) {
    if let (Some(_), Some(example)) = (value.get("schema"), value.get("example")) {
        found.push((format!("{pointer}/schema"), example.clone()));
    }
    if let (Some(_), Some(example)) = (value.get("type"), value.get("example")) {
        found.push((pointer.to_owned(), example.clone()));
    }
    match value {
        Value::Object(members) => members.iter().for_each(|(name, member)| {
            examples(member, &format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1")), found);
        }),
        Value::Array(members) => members
            .iter()
            .enumerate()
            .for_each(|(index, member)| examples(member, &format!("{pointer}/{index}"), found)),
        _ => {}
    }
}

#[test]
fn every_example_matches_its_schema() {
    let description = Description::get();
    let mut found = Vec::new();
    examples(&description.document, "", &mut found);
    let problems = description.document["components"]["examples"].as_object().unwrap().values();
    found
        .extend(problems.map(|example| ("/components/schemas/Problem".to_owned(), example["value"].clone())));
    assert!(found.len() > 35, "{}", found.len());
    for (schema, example) in found {
        assert_eq!(description.faults(&schema, &example), Vec::<String>::new(), "{schema}: {example}");
    }
}

#[tokio::test]
async fn the_page_is_served_if_enabled_and_loads_nothing_from_other_hosts() {
    let shop = Shop::start().await;
    for path in ["/docs", "/docs/page.js", "/docs/swagger-ui-bundle.js"] {
        shop.call("GET", path).send().await.expect_problem(404, "not-found");
    }
    let shop = Shop::builder().with("DOCS_ENABLED", "true").start().await;
    let page = shop.call("GET", "/docs").send().await.expect(200);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    let files = page.text.split(['"']).filter(|text| text.starts_with("docs/"));
    let files: BTreeSet<&str> = files.collect();
    assert_eq!(files.len(), 3, "{files:?}");
    for file in files {
        let answer = shop.call("GET", &format!("/{file}")).send().await.expect(200);
        let script = answer.header("content-type").unwrap().starts_with("text/");
        assert!(script && answer.header("etag").is_some(), "{file}: {:?}", answer.headers);
    }
    for text in [&page.text, &shop.call("GET", "/docs/page.js").send().await.text] {
        assert!(!text.contains("//cdn") && !text.contains("http:") && !text.contains("https:"), "{text}");
    }
}

#[tokio::test]
async fn clients_that_do_not_read_the_page_do_not_block_others() {
    let shop =
        Shop::builder().with("DOCS_ENABLED", "true").with("MAX_CONCURRENT_REQUESTS", "1").start().await;
    let address = shop.url.trim_start_matches("http://").to_owned();
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut client = TcpStream::connect(&address).await.unwrap();
        let request = "GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n";
        client.write_all(request.as_bytes()).await.unwrap();
        // The answer has begun; the client does not read it.
        client.readable().await.unwrap();
        slow.push(client);
    }
    for _ in 0..20 {
        shop.get(admin(), "/api/orders").await.expect(200);
    }
    drop(slow);
}
