//! What the client is told, and the bounds that it puts to that itself.

use std::time::Duration;

use reqwest::{Method, Url};
use thiserror::Error;
use tokio::sync::Semaphore;

use super::stock::{StockRoute, StockSettings};

/// Every bound of the [`ProductClient`](super::ProductClient).
#[derive(Clone, Debug)]
pub struct ProductSettings {
    /// Where the Product Service is; `/api/products/{id}` comes after its path.
    pub url: Url,
    /// How long all look-ups of one placement may take together.
    pub deadline: Duration,
    /// How long one attempt may take, its connection and its body included.
    pub attempt_timeout: Duration,
    /// How long a connection may take, name resolution and TLS included.
    pub connect_timeout: Duration,
    /// How often one GET is repeated after a failure that may pass.
    pub retries: u32,
    /// How many products of one placement are asked for at once.
    pub concurrency: usize,
    /// How many products of all placements are asked for at once.
    pub max_in_flight: usize,
    /// Over how many of the latest attempts the breaker judges.
    pub breaker_window: usize,
    /// The share of them that opens it when it failed, in percent; more than 100 keeps it closed for good.
    pub breaker_failure_percent: u8,
    /// How long it then stays open.
    pub breaker_open: Duration,
    /// How stock is moved.
    pub stock: StockSettings,
}

/// Settings that no client can be made of.
#[derive(Debug, Error)]
pub enum InvalidSettings {
    /// Nothing can be appended to the URL, or it is not HTTP.
    #[error(
        "the URL of the Product Service must be http(s)://host[:port][/path], without query and fragment"
    )]
    Url,
    /// No client, most likely because TLS could not be set up.
    #[error("the HTTP client cannot be made")]
    Client(#[from] reqwest::Error),
}

impl ProductSettings {
    /// A longer wait is a mistake, and far from what an [`Instant`](std::time::Instant) could not add up.
    const LONGEST: Duration = Duration::from_hours(1);

    /// The defaults, for a Product Service next door.
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

    /// The same settings, where none can stop the client from working at all.
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

    /// `{url}/api/products`, whether or not the URL ends in a slash.
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
    fn a_url_that_nothing_can_be_appended_to_is_refused() {
        for url in
            ["mailto:shop@example.com", "ftp://shop", "file:///shop", "http://shop?a=b", "http://shop#a"]
        {
            assert!(products(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_setting_of_nothing_or_of_forever_still_makes_a_working_client() {
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
