//! The settings of the client, and the limits on them.

use std::time::Duration;

use reqwest::{Method, Url};
use thiserror::Error;
use tokio::sync::Semaphore;

use super::circuit_breaker::BreakerSettings;
use super::stock::{StockRoute, StockSettings};

/// Every bound of the [`ProductClient`](super::ProductClient).
#[derive(Clone, Debug)]
pub struct ProductSettings {
    /// The base URL of the Product Service; `/api/products/{id}` is appended to its path.
    pub url: Url,
    /// The deadline of all look-ups of one placement.
    pub deadline: Duration,
    /// The timeout of one attempt, including its connection and its body.
    pub attempt_timeout: Duration,
    /// The timeout of a connection, including name resolution and TLS.
    pub connect_timeout: Duration,
    /// How often one GET is retried after a transient failure.
    pub retries: u32,
    /// The maximum number of concurrent look-ups of one placement.
    pub concurrency: usize,
    /// The maximum number of concurrent look-ups of all placements.
    pub max_in_flight: usize,
    /// The number of latest attempts from which the breaker computes the failure rate.
    pub breaker_window: usize,
    /// The failure rate that opens the breaker, in percent; more than 100 keeps it closed.
    pub breaker_failure_percent: u8,
    /// How long the breaker stays open.
    pub breaker_open: Duration,
    /// How stock is taken and given back.
    pub stock: StockSettings,
}

/// Settings that the client refuses.
#[derive(Debug, Error)]
pub enum InvalidSettings {
    /// The URL is not HTTP, or no path can be appended to it.
    #[error(
        "the URL of the Product Service must be http(s)://host[:port][/path], without query and fragment"
    )]
    Url,
    /// The HTTP client failed to start, most likely because of TLS.
    #[error("the HTTP client cannot be created")]
    Client(#[from] reqwest::Error),
}

impl ProductSettings {
    /// The longest duration. Longer ones are mistakes, and could overflow an [`Instant`](std::time::Instant).
    const LONGEST: Duration = Duration::from_hours(1);

    /// The defaults, for a Product Service in the same network.
    pub fn new(url: Url) -> Self {
        Self {
            url,
            deadline: Duration::from_secs(2),
            attempt_timeout: Duration::from_millis(800),
            connect_timeout: Duration::from_millis(500),
            retries: 1,
            concurrency: 16,
            max_in_flight: 256,
            breaker_window: 50,
            breaker_failure_percent: 50,
            breaker_open: Duration::from_secs(5),
            stock: StockSettings {
                reduce: StockRoute {
                    method: Method::POST,
                    path: "/api/products/{productId}/reduce-stock".to_owned(),
                },
                restore: StockRoute {
                    method: Method::POST,
                    path: "/api/products/{productId}/restore-stock".to_owned(),
                },
                timeout: Duration::from_secs(3),
                service_email: "order-service@shopverse.internal".to_owned(),
                key_is_honoured: true,
                key_ttl: Duration::from_hours(20),
                refusal_retries: 20,
            },
        }
    }

    /// Clamps every setting to a value with which the client works.
    pub(super) fn within_bounds(mut self) -> Self {
        for wait in
            [&mut self.deadline, &mut self.attempt_timeout, &mut self.connect_timeout, &mut self.breaker_open]
        {
            *wait = (*wait).min(Self::LONGEST);
        }
        self.concurrency = self.concurrency.max(1);
        self.max_in_flight = self.max_in_flight.clamp(1, Semaphore::MAX_PERMITS);
        self.breaker_window = self.breaker_window.max(1);
        self
    }

    pub(super) fn breaker(&self) -> BreakerSettings {
        BreakerSettings {
            window: self.breaker_window,
            failure_percent: self.breaker_failure_percent,
            open: self.breaker_open,
        }
    }

    /// `{url}/api/products`, also if the URL ends in a slash.
    pub(super) fn products(&self) -> Result<Url, InvalidSettings> {
        let mut url = self.url.clone();
        let plain =
            matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none();
        if !plain {
            return Err(InvalidSettings::Url);
        }
        url.path_segments_mut()
            .map_err(|()| InvalidSettings::Url)?
            .pop_if_empty()
            .extend(["api", "products"]);
        Ok(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn products(url: &str) -> Result<String, InvalidSettings> {
        ProductSettings::new(url.parse().unwrap()).products().map(String::from)
    }

    #[test]
    fn the_url_may_have_a_path_and_a_trailing_slash() {
        for url in ["http://shop:8081", "http://shop:8081/"] {
            assert_eq!(products(url).unwrap(), "http://shop:8081/api/products");
        }
        for url in ["https://shop/in/here", "https://shop/in/here/"] {
            assert_eq!(products(url).unwrap(), "https://shop/in/here/api/products");
        }
    }

    #[test]
    fn a_url_without_a_path_to_append_to_is_refused() {
        for url in
            ["mailto:shop@example.com", "ftp://shop", "file:///shop", "http://shop?a=b", "http://shop#a"]
        {
            assert!(products(url).is_err(), "{url}");
        }
    }

    #[test]
    fn settings_of_zero_or_infinity_are_clamped() {
        let mut settings = ProductSettings::new("http://shop".parse().unwrap());
        settings.deadline = Duration::MAX;
        settings.concurrency = 0;
        settings.max_in_flight = usize::MAX;
        settings.breaker_window = 0;
        let settings = settings.within_bounds();
        assert_eq!(settings.deadline, ProductSettings::LONGEST);
        assert_eq!((settings.concurrency, settings.breaker_window), (1, 1));
        assert_eq!(settings.max_in_flight, Semaphore::MAX_PERMITS);
    }
}
