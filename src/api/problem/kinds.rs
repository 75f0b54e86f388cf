//! All kinds of problems, for the responses and for the `OpenAPI` document.

use axum::http::StatusCode;

/// A kind of problem: the members that are the same for all occurrences (RFC 9457, 3.1).
#[derive(Debug)]
pub(crate) struct Kind {
    pub status: StatusCode,
    /// The last part of `type`, for programs.
    pub code: &'static str,
    /// The title, for people.
    pub title: &'static str,
    /// When it occurs, for the documentation.
    pub when: &'static str,
}

/// The prefix of the code in `type`.
pub(crate) const TYPE_PREFIX: &str = "urn:problem:order-service:";

/// Defines the kinds, and `ALL` with all of them.
macro_rules! kinds {
    ($($name:ident = $status:ident $code:literal, $title:literal, $when:literal;)+) => {
        $(
            #[doc = $when]
            pub(crate) static $name: Kind =
                Kind { status: StatusCode::$status, code: $code, title: $title, when: $when };
        )+
        pub(crate) static ALL: &[&Kind] = &[$(&$name),+];
    };
}

kinds! {
    INVALID_REQUEST = BAD_REQUEST "invalid-request", "The request is invalid",
        "The JSON, a type, a limit, an id, a cursor or a header is invalid. `errors` names each field.";
    PRODUCT_NOT_FOUND = BAD_REQUEST "product-not-found", "The product does not exist",
        "The Product Service does not know a product. `errors` names each of them.";
    INSUFFICIENT_STOCK = BAD_REQUEST "insufficient-stock", "There is not enough stock",
        "A product has less stock than requested. `errors` names each short line with `requested` and `available`.";
    UNAUTHENTICATED = UNAUTHORIZED "unauthenticated", "The caller is not authenticated",
        "An identity header of the gateway is missing, repeated or malformed.";
    FORBIDDEN = FORBIDDEN "forbidden", "The caller may not do this",
        "The caller's role does not allow it, or the order is another customer's.";
    ORDER_NOT_FOUND = NOT_FOUND "order-not-found", "The order does not exist",
        "No order has this id.";
    NOT_FOUND = NOT_FOUND "not-found", "This path does not exist",
        "No route has this path.";
    METHOD_NOT_ALLOWED = METHOD_NOT_ALLOWED "method-not-allowed", "This method is not allowed here",
        "The path has other methods; `Allow` names them.";
    REQUEST_TIMEOUT = REQUEST_TIMEOUT "request-timeout", "The request took too long to arrive",
        "The body did not arrive in time.";
    INVALID_TRANSITION = CONFLICT "invalid-transition", "The order cannot change to this status",
        "The status of the order does not allow the change. `allowed` lists the reachable statuses.";
    STOCK_UNAVAILABLE = CONFLICT "stock-unavailable", "The stock is gone",
        "The stock was gone at the confirmation. The order stays CREATED.";
    REQUEST_IN_PROGRESS = CONFLICT "request-in-progress", "The same request is running",
        "A request with the same Idempotency-Key, or with the same lines, is still running.";
    PRECONDITION_FAILED = PRECONDITION_FAILED "precondition-failed", "The order has changed",
        "`If-Match` does not match the order's `ETag`.";
    PAYLOAD_TOO_LARGE = PAYLOAD_TOO_LARGE "payload-too-large", "The body is too large",
        "The body has more than 64 KiB.";
    UNSUPPORTED_MEDIA_TYPE = UNSUPPORTED_MEDIA_TYPE "unsupported-media-type", "The body is of the wrong type",
        "`Content-Type` is not application/json in UTF-8, or the body has a `Content-Encoding`.";
    IDEMPOTENCY_KEY_REUSED = UNPROCESSABLE_ENTITY "idempotency-key-reused", "The key belongs to another request",
        "An earlier request used the same `Idempotency-Key` with other lines.";
    INTERNAL = INTERNAL_SERVER_ERROR "internal", "The service failed",
        "The service has a bug. The log has the details under the `X-Request-Id` of the request.";
    PRODUCT_SERVICE_UNAVAILABLE = SERVICE_UNAVAILABLE "product-service-unavailable",
        "The Product Service is not available",
        "The Product Service is unreachable, slow, or sends invalid answers. No order was written; a confirmation continues.";
    UNAVAILABLE = SERVICE_UNAVAILABLE "unavailable", "The service is not available",
        "The database is unavailable, or the service is overloaded, starting or stopping. Nothing was written.";
    OUTCOME_UNKNOWN = SERVICE_UNAVAILABLE "outcome-unknown", "The outcome is unknown",
        "The database did not confirm in time whether it wrote. `detail` says how to retry safely.";
}
