//! The problems in the `OpenAPI` document, rendered by the code of the responses.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::openapi::example::{Example, ExampleBuilder};
use utoipa::openapi::schema::AdditionalProperties;
use utoipa::openapi::{
    AllOfBuilder, ArrayBuilder, Components, ContentBuilder, Object, ObjectBuilder, Ref, RefOr, Response,
    ResponseBuilder, Type,
};

use super::headers::{add_header, headers_of};
use crate::api::error::RETRY_SOON;
use crate::api::problem::kinds::{self, Kind, TYPE_PREFIX};
use crate::api::problem::{MEDIA_TYPE, Problem};
use crate::domain::line::BadLines;
use crate::domain::order::InvalidTransition;
use crate::domain::{OrderId, ProductId, Status};
use crate::orders::{OrderError, PlaceError, ShortLine, UnknownProduct};

const ORDER: &str = "/api/orders/0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10";

/// The responses of these kinds, by status.
pub(super) fn responses(codes: &[String]) -> BTreeMap<String, Response> {
    let mut by_status: BTreeMap<String, Vec<&'static Kind>> = BTreeMap::new();
    for kind in kinds::ALL.iter().filter(|kind| codes.iter().any(|code| code == kind.code)) {
        by_status.entry(kind.status.as_str().to_owned()).or_default().push(kind);
    }
    by_status.into_iter().map(|(status, kinds)| (status, response(&kinds))).collect()
}

/// A response that allows only these kinds.
fn response(kinds: &[&'static Kind]) -> Response {
    let about: Vec<String> = kinds.iter().map(|kind| format!("`{}`: {}", kind.code, kind.when)).collect();
    let types = kinds.iter().map(|kind| format!("{TYPE_PREFIX}{}", kind.code));
    let narrowed = ObjectBuilder::new()
        .schema_type(Type::Object)
        .property("type", ObjectBuilder::new().schema_type(Type::String).enum_values(Some(types)));
    let schema = AllOfBuilder::new().item(Ref::from_schema_name("Problem")).item(narrowed);
    let examples = kinds.iter().map(|kind| {
        (kind.code, RefOr::<Example>::Ref(Ref::new(format!("#/components/examples/{}", kind.code))))
    });
    let content = ContentBuilder::new().schema(Some(schema)).examples_from_iter(examples);
    let mut response =
        ResponseBuilder::new().description(about.join("\n\n")).content(MEDIA_TYPE, content.build()).build();
    for kind in kinds {
        for name in headers_of(kind.status, kind.code) {
            add_header(&mut response, name);
        }
    }
    response
}

/// The schema of a problem, an example of each kind, and the responses that belong to no operation.
pub(super) fn add_components(components: &mut Components) {
    components.schemas.insert("Problem".to_owned(), problem().into());
    components.schemas.insert("FieldError".to_owned(), field_error().into());
    for (kind, document) in examples() {
        let example = ExampleBuilder::new().summary(kind.title).value(Some(document)).build();
        components.examples.insert(kind.code.to_owned(), example.into());
    }
    for kind in [&kinds::NOT_FOUND, &kinds::METHOD_NOT_ALLOWED] {
        components.responses.insert(kind.code.to_owned(), response(&[kind]).into());
    }
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

/// RFC 9457, with the extension members of some kinds.
fn problem() -> Object {
    let codes = kinds::ALL.iter().map(|kind| format!("{TYPE_PREFIX}{}", kind.code));
    let status = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(400)).maximum(Some(599));
    let allowed = ArrayBuilder::new()
        .items(Ref::from_schema_name("OrderStatus"))
        .description(Some("The statuses that the order can change to."));
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("The error, for people and programs (RFC 9457)."))
        .property("type", text().enum_values(Some(codes)).description(Some("The kind, for programs.")))
        .property("title", text().description(Some("The kind, for people.")))
        .property("status", status)
        .property("detail", text().description(Some("This occurrence, for people.")))
        .property("instance", text().description(Some("The path of the request.")))
        .property("errors", ArrayBuilder::new().items(Ref::from_schema_name("FieldError")))
        .property("allowed", allowed)
        .property("productId", Ref::from_schema_name("ProductId"))
        .property("components", Ref::from_schema_name("Components"))
        .required("type")
        .required("title")
        .required("status")
        .required("detail")
        .required("instance")
        .additional_properties(Some(AdditionalProperties::FreeForm(true)))
        .build()
}

fn field_error() -> Object {
    let count = || ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
    let place = "A JSON pointer into the body (RFC 6901), or the name of a header, path or query parameter.";
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("One error and its place in the request."))
        .property("pointer", text().description(Some(place)))
        .property("detail", text())
        .property("productId", Ref::from_schema_name("ProductId"))
        .property("requested", count())
        .property("available", count())
        .required("pointer")
        .required("detail")
        .build()
}

/// An example of each kind.
fn examples() -> Vec<(&'static Kind, Value)> {
    let mut problems = of_placing();
    problems.extend(of_an_order());
    problems.extend(of_any_request());
    let rendered = problems.into_iter().map(|(problem, instance)| {
        (problem.kind(), serde_json::from_slice(&problem.document(instance)).unwrap_or_default())
    });
    rendered.collect()
}

fn of_placing() -> Vec<(Problem, &'static str)> {
    let product = ProductId::parse("PROD456").ok();
    let short =
        product.clone().map(|product_id| ShortLine { line: 0, product_id, requested: 21, available: 20 });
    let unknown = product.map(|product_id| UnknownProduct { line: 0, product_id });
    let rule = "must have 1 to 100 lines";
    [
        PlaceError::BadLines(BadLines { line: None, rule }),
        PlaceError::InsufficientStock(short.into_iter().collect()),
        PlaceError::UnknownProducts(unknown.into_iter().collect()),
        PlaceError::InProgress,
        PlaceError::KeyReused,
        PlaceError::TotalTooLarge,
    ]
    .map(|error| (Problem::from(error), "/api/orders"))
    .into()
}

fn of_an_order() -> Vec<(Problem, &'static str)> {
    let id = OrderId::parse(&ORDER["/api/orders/".len()..]).unwrap_or_else(|_| OrderId::generate());
    let product = ProductId::parse("PROD456").ok();
    let mut errors = vec![
        OrderError::NotFound(id),
        OrderError::PreconditionFailed(2),
        OrderError::InvalidTransition(InvalidTransition { from: Status::Confirmed, to: Status::Created }),
    ];
    errors.extend(product.map(OrderError::StockUnavailable));
    errors.into_iter().map(|error| (Problem::from(error), ORDER)).collect()
}

fn of_any_request() -> Vec<(Problem, &'static str)> {
    let plain = |kind: &'static Kind, detail: &str| Problem::new(kind, detail);
    vec![
        (crate::api::identity::unauthenticated("X-User-Email", "is missing"), ORDER),
        (plain(&kinds::FORBIDDEN, "The order belongs to another customer."), ORDER),
        (Problem::of_framework(kinds::NOT_FOUND.status), "/api/basket"),
        (Problem::of_framework(kinds::METHOD_NOT_ALLOWED.status), ORDER),
        (plain(&kinds::REQUEST_TIMEOUT, "The body did not arrive in time."), "/api/orders"),
        (plain(&kinds::PAYLOAD_TOO_LARGE, "The body may have at most 64 KiB."), "/api/orders"),
        (
            plain(&kinds::UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json, in UTF-8."),
            "/api/orders",
        ),
        (Problem::bug(), "/api/orders"),
        (Problem::unavailable("The database is not available.", RETRY_SOON), "/api/orders"),
        (Problem::outcome_unknown(RETRY_SOON), "/api/orders"),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_has_one_example_and_no_two_kinds_have_one_code() {
        let kinds: Vec<&str> = kinds::ALL.iter().map(|kind| kind.code).collect();
        let examples: Vec<&str> = examples().iter().map(|(kind, _)| kind.code).collect();
        let unique: BTreeSet<&str> = examples.iter().copied().collect();
        assert_eq!(unique, kinds.iter().copied().collect());
        assert_eq!((examples.len(), kinds.len()), (unique.len(), unique.len()));
        for (kind, document) in super::examples() {
            assert_eq!(document["status"], json!(kind.status.as_u16()), "{document}");
        }
    }
}
