//! Reads the settings of the Product Service.

use std::time::Duration;

use reqwest::{Method, Url};

use super::{Environment, MINUTE, SECOND};
use crate::domain::CustomerId;
use crate::products::{BreakerSettings, ProductSettings, StockRoute, StockSettings};

pub(super) fn products(env: &Environment) -> Option<ProductSettings> {
    let url = env.required("PRODUCT_SERVICE_URL", "a URL such as http://product-service:8081", |text| {
        let url = text.parse::<Url>().ok().filter(|url| ["http", "https"].contains(&url.scheme()))?;
        (url.query().is_none() && url.fragment().is_none()).then_some(url)
    });
    let settings = |url| ProductSettings {
        url,
        deadline: env.millis("PRODUCT_DEADLINE_MS", 3 * SECOND, 10..=MINUTE),
        attempt_timeout: env.millis("PRODUCT_ATTEMPT_TIMEOUT_MS", SECOND, 10..=MINUTE),
        connect_timeout: env.millis("PRODUCT_CONNECT_TIMEOUT_MS", 500, 10..=MINUTE),
        retries: env.number("PRODUCT_RETRIES", 1, 0..=5),
        concurrency: env.number("PRODUCT_CONCURRENCY", 16, 1..=100),
        max_in_flight: env.number("PRODUCT_MAX_IN_FLIGHT", 64, 1..=10_000),
        breaker: BreakerSettings {
            window: env.number("PRODUCT_BREAKER_WINDOW", 50, 10..=10_000),
            failure_percent: env.number("PRODUCT_BREAKER_FAILURE_PERCENT", 50, 1..=100),
            open: env.millis("PRODUCT_BREAKER_OPEN_MS", 5 * SECOND, 100..=10 * MINUTE),
        },
        stock: product_stock(env),
    };
    // A placeholder, so that the other settings are validated too. The missing URL is an error already.
    url.or_else(|| "http://unset.invalid".parse().ok()).map(settings)
}

fn product_stock(env: &Environment) -> StockSettings {
    let route = |method_name: &'static str, path_name: &'static str, default: &str| {
        let methods = [("POST", Method::POST), ("PUT", Method::PUT), ("PATCH", Method::PATCH)];
        let method = env.text(method_name, "POST");
        let known = methods.into_iter().find(|(word, _)| *word == method);
        if known.is_none() {
            env.refuse(method_name, "must be one of POST, PUT, PATCH");
        }
        let path = env.text(path_name, default);
        if !path.starts_with('/') || !path.contains(StockRoute::PLACEHOLDER) {
            env.refuse(path_name, "must start with / and contain {productId}");
        }
        StockRoute { method: known.map_or(Method::POST, |(_, method)| method), path }
    };
    let service_email = env.text("PRODUCT_SERVICE_USER_EMAIL", "order-service@shopverse.internal");
    if CustomerId::parse(&service_email).is_err() || !service_email.is_ascii() {
        env.refuse("PRODUCT_SERVICE_USER_EMAIL", "must be an e-mail address");
    }
    StockSettings {
        reduce: route(
            "PRODUCT_REDUCE_METHOD",
            "PRODUCT_REDUCE_PATH",
            "/api/products/{productId}/reduce-stock",
        ),
        restore: route(
            "PRODUCT_RESTORE_METHOD",
            "PRODUCT_RESTORE_PATH",
            "/api/products/{productId}/restore-stock",
        ),
        timeout: env.millis("PRODUCT_STOCK_TIMEOUT_MS", 3 * SECOND, 10..=MINUTE),
        service_email,
        key_is_honoured: env.flag("PRODUCT_HONOURS_IDEMPOTENCY_KEY", true),
        key_ttl: env.time(
            "PRODUCT_IDEMPOTENCY_KEY_TTL",
            Duration::from_hours(20),
            Duration::from_hours(8760),
        ),
        refusal_retries: env.number("PRODUCT_REFUSAL_RETRIES", 20, 0..=1_000),
    }
}
