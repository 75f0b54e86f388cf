//! The `OpenAPI` document, and the check of answers against it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use jsonschema::Validator;
use serde_json::{Value, json};

use super::Answer;

/// Headers of HTTP, of the body or of the connection, which are not part of the API.
const OF_HTTP: [&str; 5] = ["connection", "content-length", "content-type", "date", "transfer-encoding"];

/// The document of this version of the service.
pub(crate) struct Description {
    pub(crate) document: Value,
    /// Validators by the JSON pointer of the schema: building one takes far longer than using it.
    validators: Mutex<HashMap<String, Arc<Validator>>>,
}

impl Description {
    /// The instance that all tests share.
    pub(crate) fn get() -> &'static Self {
        static ONE: OnceLock<Description> = OnceLock::new();
        ONE.get_or_init(|| Self {
            document: serde_json::to_value(order_service::api::openapi()).unwrap(),
            validators: Mutex::default(),
        })
    }

    /// Every operation, in the form `GET /api/orders`.
    pub(crate) fn operations(&self) -> impl Iterator<Item = String> {
        let paths = self.document["paths"].as_object().unwrap();
        paths.iter().flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(move |method| format!("{} {path}", method.to_uppercase()))
        })
    }

    /// The violations of a value against the schema at this JSON pointer of the document.
    pub(crate) fn faults(&self, schema: &str, value: &Value) -> Vec<String> {
        let known = self.validators.lock().unwrap().get(schema).cloned();
        let validator = known.unwrap_or_else(|| {
            let rule = self.document.pointer(schema).unwrap_or_else(|| panic!("no schema at {schema}"));
            let schema_of_one = json!({"allOf": [rule], "components": self.document["components"]});
            let made = jsonschema::options().should_validate_formats(true).build(&schema_of_one);
            let made = Arc::new(made.unwrap_or_else(|error| panic!("{schema}: {error}")));
            self.validators.lock().unwrap().insert(schema.to_owned(), Arc::clone(&made));
            made
        });
        validator.iter_errors(value).map(|error| format!("{} at {}", error, error.instance_path())).collect()
    }

    /// Fails if the document describes the operation, but not the status, headers or body of this answer.
    #[track_caller]
    pub(crate) fn expect_described(&self, method: &str, path: &str, answer: &Answer) {
        let Some(operation) = self.operation(method, path) else { return };
        // Malformed HTTP: hyper answers before the service sees a request.
        if [400, 414, 431].contains(&answer.status) && answer.header("content-type").is_none() {
            return;
        }
        let place = format!("{operation}/responses/{}", answer.status);
        let call = format!("{method} {path}: {} {}", answer.status, answer.text);
        let response = self.document.pointer(&place);
        let response = response.unwrap_or_else(|| panic!("a status that is not described: {call}"));
        for name in answer.headers.keys().filter(|name| !OF_HTTP.contains(&name.as_str())) {
            let described = response["headers"].as_object().into_iter().flatten();
            let described = described.into_iter().any(|(known, _)| known.eq_ignore_ascii_case(name.as_str()));
            assert!(described, "the header {name} is not described: {call}");
        }
        let Some(media_type) = answer.header("content-type") else {
            assert_eq!(response.get("content"), None, "the described body is missing: {call}");
            return;
        };
        let schema = format!("{place}/content/{}/schema", media_type.replace('/', "~1"));
        assert!(self.document.pointer(&schema).is_some(), "{media_type} is not described: {call}");
        assert_eq!(self.faults(&schema, &answer.body), Vec::<String>::new(), "{call}");
    }

    /// The JSON pointer of the operation of a request.
    fn operation(&self, method: &str, path: &str) -> Option<String> {
        let is_path = |template: &str| {
            let (mut wanted, mut there) = (template.split('/'), path.split('/'));
            loop {
                match (wanted.next(), there.next()) {
                    (None, None) => return true,
                    (Some(parameter), Some(value)) if parameter.starts_with('{') && !value.is_empty() => {}
                    (wanted, there) if wanted == there => {}
                    _ => return false,
                }
            }
        };
        let paths = self.document["paths"].as_object().unwrap();
        let exact = paths.get_key_value(path);
        let (template, item) = exact.or_else(|| paths.iter().find(|(template, _)| is_path(template)))?;
        let method = method.to_lowercase();
        item.get(&method)?;
        Some(format!("/paths/{}/{method}", template.replace('/', "~1")))
    }
}
