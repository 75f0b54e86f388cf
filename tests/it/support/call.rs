//! One HTTP call and its answer.

use reqwest::header::HeaderMap;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::Value;

use super::Description;

/// A caller.
#[derive(Clone, Copy)]
pub(crate) struct Who<'a> {
    email: &'a str,
    role: &'a str,
}

/// A customer.
pub(crate) const fn customer(email: &str) -> Who<'_> {
    Who { email, role: "CUSTOMER" }
}

/// The admin.
pub(crate) fn admin() -> Who<'static> {
    Who { email: "admin@example.com", role: "ADMIN" }
}

/// A call under construction.
pub(crate) struct Call(RequestBuilder);

impl Call {
    pub(crate) fn new(client: &Client, method: Method, url: String) -> Self {
        Self(client.request(method, url))
    }

    /// The two headers of the gateway.
    pub(crate) fn by(self, who: Who<'_>) -> Self {
        self.header("X-User-Email", who.email).header("X-User-Role", who.role)
    }

    /// Adds a header; keeps an earlier one of the same name.
    pub(crate) fn header(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        Self(self.0.header(name, value.as_ref()))
    }

    /// Sets a JSON body.
    pub(crate) fn json(self, body: &Value) -> Self {
        self.body(body.to_string())
    }

    /// Sets any body, declared as JSON.
    pub(crate) fn body(self, body: impl Into<reqwest::Body>) -> Self {
        Self(self.0.header("Content-Type", "application/json").body(body))
    }

    /// Sets a body without a content type.
    pub(crate) fn bare_body(self, body: impl Into<reqwest::Body>) -> Self {
        Self(self.0.body(body))
    }

    /// Sends the call; returns the answer or the client's error.
    pub(crate) async fn try_send(self) -> Result<Answer, reqwest::Error> {
        let response = self.0.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        Ok(Answer { status, headers, body: serde_json::from_str(&text).unwrap_or(Value::Null), text })
    }

    /// Sends the call; returns the answer, which the `OpenAPI` document must describe.
    pub(crate) async fn send(self) -> Answer {
        let (client, request) = self.0.build_split();
        let request = request.unwrap();
        let (method, path) = (request.method().to_string(), request.url().path().to_owned());
        let call = Self(RequestBuilder::from_parts(client, request));
        let answer = call.try_send().await.expect("an answer");
        Description::get().expect_described(&method, &path, &answer);
        answer
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Checks the status; a failure shows the answer.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    /// Checks that this is the problem of the contract's table with this status and code, in the common shape.
    #[track_caller]
    pub(crate) fn expect_problem(self, status: u16, code: &str) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{}", self.text);
        assert_eq!(self.body["type"], format!("urn:problem:order-service:{code}"), "{}", self.text);
        assert_eq!(self.body["status"], status, "{}", self.text);
        for member in ["title", "detail", "instance"] {
            assert!(self.body[member].is_string(), "{member} is missing: {}", self.text);
        }
        self
    }

    /// Checks that `errors` names this place.
    #[track_caller]
    pub(crate) fn naming(self, pointer: &str) -> Self {
        let named =
            self.body["errors"].as_array().is_some_and(|all| all.iter().any(|e| e["pointer"] == pointer));
        assert!(named, "{pointer} is not named: {}", self.text);
        self
    }

    /// Checks that this is a 503 of the contract's table, with `Retry-After` and without details of the cause.
    #[track_caller]
    pub(crate) fn expect_unavailable(self, code: &str) -> Self {
        let answer = self.expect_problem(503, code);
        let seconds = answer.header("retry-after").and_then(|value| value.parse::<u64>().ok());
        assert!(seconds.is_some_and(|seconds| (1..=60).contains(&seconds)), "{:?}", answer.headers);
        answer
    }

    /// The order's id.
    #[track_caller]
    pub(crate) fn order_id(&self) -> String {
        self.body["orderId"].as_str().expect("an orderId").to_owned()
    }
}
