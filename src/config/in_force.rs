//! The settings in use, with hidden secrets.

use reqwest::Url;

use super::environment::is_of_a_secret;
use super::{Environment, InvalidConfig, read_service};

/// A setting of `serve`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The name of the variable.
    pub name: &'static str,
    /// The value, with hidden secrets.
    pub value: Option<String>,
    /// The source of the value: `environment`, `.env`, `default`, or `unset` without a value.
    pub source: &'static str,
}

/// All settings of `serve`, and their errors. `process` is the environment without `.env`.
pub fn settings_in_force(env: &Environment, process: &Environment) -> (Vec<Setting>, Option<InvalidConfig>) {
    let invalid = read_service(env).err();
    let is_set = |env: &Environment, name: &str| {
        env.variables().get(name).is_some_and(|value| !value.trim().is_empty())
    };
    let setting = |name: &'static str| {
        let source = match (is_set(process, name), is_set(env, name)) {
            (true, _) => "environment",
            (false, true) => ".env",
            _ if env.default_of(name).is_some() => "default",
            _ => "unset",
        };
        let value = env.variables().get(name).filter(|value| !value.trim().is_empty());
        let value = value.map(|value| shown(name, value.trim())).or_else(|| env.default_of(name));
        Setting { name, value, source }
    };
    (env.asked().into_iter().map(setting).collect(), invalid)
}

/// The value to show, without its secrets.
fn shown(name: &str, value: &str) -> String {
    const HIDDEN: &str = "(hidden)";
    let url = value.parse::<Url>().ok().filter(Url::has_host);
    match url {
        Some(mut url) if name.ends_with("_URL") || !is_secret(name) => {
            // The parameters of a database URL may contain a password.
            if is_of_a_secret(name) {
                url.set_query(None);
            }
            if url.password().is_some() && url.set_password(Some("hidden")).is_err() {
                return HIDDEN.to_owned();
            }
            if url.password().is_none() && !is_of_a_secret(name) { value.to_owned() } else { url.to_string() }
        }
        _ if is_secret(name) => HIDDEN.to_owned(),
        _ => value.to_owned(),
    }
}

/// Whether a setting is secret, including those of libraries such as the headers of OTLP.
fn is_secret(name: &str) -> bool {
    is_of_a_secret(name) || ["SECRET", "PASSWORD", "TOKEN", "HEADERS"].iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let shown_as = [
            (
                "DATABASE_URL",
                "postgres://ada:pw@db:5432/orders?sslpassword=pw",
                "postgres://ada:hidden@db:5432/orders",
            ),
            ("DATABASE_URL", "host=db password=pw", "(hidden)"),
            ("DATABASE_URL_FILE", "/run/secrets/url", "(hidden)"),
            ("GATEWAY_SECRET", "0123456789abcdef", "(hidden)"),
            ("GATEWAY_SECRET", "http://pw", "(hidden)"),
            ("KAFKA_SASL_PASSWORD", "pw", "(hidden)"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=pw", "(hidden)"),
            ("PRODUCT_SERVICE_URL", "http://ada:pw@products:8081", "http://ada:hidden@products:8081/"),
            ("PRODUCT_SERVICE_URL", "http://products:8081", "http://products:8081"),
            ("KAFKA_BOOTSTRAP_SERVERS", "kafka-1:9092,kafka-2:9092", "kafka-1:9092,kafka-2:9092"),
        ];
        for (name, value, expected) in shown_as {
            assert_eq!(shown(name, value), expected, "{name}");
        }
    }

    #[test]
    fn each_value_is_shown_with_its_source() {
        let process = Environment::default().with("RELAY_BATCH", "7").with("MAX_CONNECTIONS", " ");
        let file = [("RELAY_BATCH", "8"), ("LOG_FORMAT", "human")];
        let env = process.clone().or(file.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let (settings, invalid) = settings_in_force(&env, &process);
        assert!(invalid.is_some(), "the required ones are not set");
        let of = |name| {
            let found = settings.iter().find(|setting| setting.name == name).unwrap();
            (found.value.as_deref(), found.source)
        };
        assert_eq!(of("RELAY_BATCH"), (Some("7"), "environment"));
        assert_eq!(of("LOG_FORMAT"), (Some("human"), ".env"));
        assert_eq!(of("MAX_CONNECTIONS"), (Some("4096"), "default"));
        assert_eq!(of("DATABASE_URL"), (None, "unset"));
    }
}
