//! The `OpenAPI` document: the descriptions of the handlers, with the parts that all handlers share.

use serde_json::json;
use utoipa::OpenApi as _;
use utoipa::openapi::link::Link;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::request_body::RequestBody;
use utoipa::openapi::schema::Schema;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, ObjectBuilder, OpenApi, RefOr, Required, Type};

use super::headers::{self, add_header};
use super::problems;
use crate::api::problem::kinds::{
    self, INTERNAL, INVALID_REQUEST, PAYLOAD_TOO_LARGE, REQUEST_TIMEOUT, UNAUTHENTICATED, UNAVAILABLE,
    UNSUPPORTED_MEDIA_TYPE,
};

/// The extension in which a handler lists its problems.
pub(super) const PROBLEMS: &str = "x-problems";

/// A link from a response to the operations on its order.
struct FollowUp {
    from: &'static str,
    status: &'static str,
    order: &'static str,
    to: &'static [&'static str],
}

const FOLLOW_UPS: [FollowUp; 4] = {
    const PLACED: &[&str] = &["getOrder", "getOrderHistory", "cancelOrder", "changeOrderStatus"];
    const SHOWN: &[&str] = &["getOrderHistory", "cancelOrder", "changeOrderStatus"];
    const CHANGED: &[&str] = &["getOrder", "getOrderHistory"];
    const ORDER: &str = "$response.body#/orderId";
    [
        FollowUp { from: "placeOrder", status: "201", order: ORDER, to: PLACED },
        FollowUp { from: "getOrder", status: "200", order: ORDER, to: SHOWN },
        FollowUp { from: "changeOrderStatus", status: "200", order: ORDER, to: CHANGED },
        FollowUp { from: "cancelOrder", status: "200", order: ORDER, to: CHANGED },
    ]
};

/// Adds the parts that all handlers share: problems, links, headers and parameters.
pub(in crate::api) fn complete(mut api: OpenApi) -> OpenApi {
    let frame = Frame::openapi();
    (api.info, api.servers, api.tags) = (frame.info, frame.servers, frame.tags);
    let mut components = api.components.take().unwrap_or_default();
    add_components(&mut components);
    api.components = Some(components);
    for (path, item) in &mut api.paths.paths {
        let is_order_call = path.starts_with("/api/");
        for operation in operations(item) {
            if is_order_call {
                operation.security = Some(callers());
            }
            add_parameters(operation);
            if let Some(RefOr::T(body)) = &mut operation.request_body {
                name_optional_body(body);
            }
            add_problems(operation, is_order_call);
            add_links(operation);
            add_headers(operation, is_order_call);
        }
    }
    api
}

pub(super) fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch].into_iter().flatten()
}

const ABOUT: &str = "Places orders, keeps them in PostgreSQL and publishes their events to Kafka \
    (see `/asyncapi.json`).\n\n\
    The gateway in front of the service authenticates the caller and sends the identity in `X-User-Email` and \
    `X-User-Role`. Amounts are exact decimals with at most two places, in INR. Times are RFC 3339 in UTC. Unknown \
    fields in requests are ignored, and new fields may be added to responses.";

/// The parts that belong to no handler. The version and the licence are those of `Cargo.toml`.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "ShopVerse order service",
        description = ABOUT,
        contact(name = "The order service of ShopVerse")
    ),
    servers((url = "/", description = "The server of this document.")),
    tags(
        (name = "orders", description = "Place, read and change orders."),
        (name = "health", description = "For load balancers and operators. They need no identity."),
    ),
)]
struct Frame;

/// The identity headers of the gateway, and its secret if `GATEWAY_SECRET` is set.
const SCHEMES: [(&str, &str, &str); 3] = [
    ("userEmail", "X-User-Email", "The customer: an e-mail address, compared exactly."),
    ("userRole", "X-User-Role", "`CUSTOMER` or `ADMIN`."),
    (
        "gatewaySecret",
        "X-Gateway-Secret",
        "Proves that the request came through the gateway, if `GATEWAY_SECRET` is set.",
    ),
];

fn callers() -> Vec<SecurityRequirement> {
    let none: [&str; 0] = [];
    let caller = SecurityRequirement::new("userEmail", none).add("userRole", none);
    vec![caller.clone(), caller.add("gatewaySecret", none)]
}

fn add_components(components: &mut Components) {
    for (name, header, about) in SCHEMES {
        let scheme = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(header, about)));
        components.security_schemes.insert(name.to_owned(), scheme.into());
    }
    headers::add_components(components);
    problems::add_components(components);
}

/// Examples of parameters. They are in the schemas, because the page would fill in and send an example of a parameter.
const EXAMPLES: [(&str, &str); 5] = [
    ("Idempotency-Key", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
    ("If-Match", "\"1\""),
    ("If-None-Match", "\"1\""),
    ("from", "2026-01-21T12:30:00Z"),
    ("to", "2026-01-22T00:00:00Z"),
];

fn add_parameters(operation: &mut Operation) {
    let parameters = operation.parameters.get_or_insert_default();
    for parameter in parameters.iter_mut() {
        let RefOr::T(Parameter { name, schema: Some(RefOr::T(Schema::Object(schema))), .. }) = parameter
        else {
            continue;
        };
        let example = EXAMPLES.iter().find(|(known, _)| known == name);
        schema.examples.extend(example.map(|(_, example)| json!(example)));
    }
    parameters
        .extend(CALL_HEADERS.map(|(name, about, example)| header_parameter(name, about, example).into()));
}

/// An optional body is never `null`, which the derived schema would allow.
fn name_optional_body(body: &mut RequestBody) {
    for content in body.content.values_mut() {
        if let RefOr::T(content) = content
            && let Some(RefOr::T(Schema::OneOf(either))) = &content.schema
            && let Some(named) = either.items.iter().find(|item| matches!(item, RefOr::Ref(_)))
        {
            content.schema = Some(named.clone());
        }
    }
}

/// The headers that every call may have.
const CALL_HEADERS: [(&str, &str, &str); 3] = [
    (
        "X-Request-Id",
        "The id of the request in the log and the response: 1 to 128 letters, digits, `-`, `_`, `.` or `:`. Invalid ids are replaced.",
        "checkout-4711",
    ),
    (
        "traceparent",
        "The trace of the request (W3C Trace Context). The event continues it.",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ),
    (
        "tracestate",
        "Vendor data of the trace (W3C Trace Context). The service passes up to 512 bytes on with `traceparent`.",
        "gateway=00f067aa0ba902b7",
    ),
];

fn header_parameter(name: &str, about: &str, example: &str) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(about))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String).examples([json!(example)])))
        .build()
}

/// Adds the problems of the operation, and those that all operations of its kind share.
fn add_problems(operation: &mut Operation, is_order_call: bool) {
    let named = operation.extensions.as_ref().and_then(|extensions| extensions.get(PROBLEMS)?.as_array());
    let mut codes: Vec<String> =
        named.into_iter().flatten().filter_map(|code| Some(code.as_str()?.to_owned())).collect();
    let mut add = |kinds: &[&kinds::Kind]| codes.extend(kinds.iter().map(|kind| kind.code.to_owned()));
    add(&[&INTERNAL]);
    if is_order_call {
        add(&[&UNAUTHENTICATED, &UNAVAILABLE]);
    }
    if operation.request_body.is_some() {
        add(&[&INVALID_REQUEST, &REQUEST_TIMEOUT, &PAYLOAD_TOO_LARGE, &UNSUPPORTED_MEDIA_TYPE]);
    }
    codes.sort_unstable();
    codes.dedup();
    for (status, response) in problems::responses(&codes) {
        operation.responses.responses.insert(status, response.into());
    }
    operation.extensions.get_or_insert_default().insert(PROBLEMS.to_owned(), json!(codes));
}

fn add_links(operation: &mut Operation) {
    let id = operation.operation_id.as_deref().unwrap_or_default();
    for follow_up in FOLLOW_UPS.iter().filter(|follow_up| follow_up.from == id) {
        let Some(RefOr::T(response)) = operation.responses.responses.get_mut(follow_up.status) else {
            continue;
        };
        for to in follow_up.to {
            let link = Link::builder()
                .operation_id(*to)
                .parameter("orderId", follow_up.order)
                .description("The id of the order is the path parameter.")
                .build();
            response.links.insert((*to).to_owned(), link.into());
        }
    }
}

fn add_headers(operation: &mut Operation, is_order_call: bool) {
    let responses = operation.responses.responses.values_mut().filter_map(|response| match response {
        RefOr::T(response) => Some(response),
        RefOr::Ref(_) => None,
    });
    for response in responses {
        let mut add = |name: &str| add_header(response, name);
        add("X-Request-Id");
        if is_order_call {
            add("Cache-Control");
        }
    }
}
