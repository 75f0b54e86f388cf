//! The settings of traces, by the variables of OpenTelemetry:
//! <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/> and
//! <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>. The variable for traces (`…_TRACES_…`) overrides the
//! general one.

use std::time::Duration;

use opentelemetry_sdk::trace::Sampler;
use percent_encoding::percent_decode_str;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::environment::Environment;
use crate::telemetry::otlp::{Protocol, TraceSettings};

const SERVICE: &str = "order-service";

/// Reads the settings. `None` without an endpoint, or if the SDK is disabled; invalid values are errors in any case.
pub(super) fn traces(env: &Environment) -> Option<TraceSettings> {
    let protocol = protocol(env);
    let endpoint = endpoint(env, protocol);
    let max_queue_size = env.number("OTEL_BSP_MAX_QUEUE_SIZE", 2048, 1..=1_000_000);
    let settings = TraceSettings {
        endpoint: endpoint.clone().unwrap_or_default(),
        protocol,
        headers: headers(env),
        timeout: timeout(env),
        sampler: sampler(env),
        resource: resource(env),
        schedule_delay: env.millis("OTEL_BSP_SCHEDULE_DELAY", 5_000, 1..=600_000),
        export_timeout: env.millis("OTEL_BSP_EXPORT_TIMEOUT", 30_000, 1..=600_000),
        max_queue_size,
        max_batch_size: env.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512, 1..=1_000_000),
    };
    if settings.max_batch_size > max_queue_size {
        env.refuse("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "must not be more than OTEL_BSP_MAX_QUEUE_SIZE");
    }
    let is_disabled = env.flag("OTEL_SDK_DISABLED", false);
    let exporter = env.choice("OTEL_TRACES_EXPORTER", true, &[("otlp", true), ("none", false)]);
    (endpoint.is_some() && exporter && !is_disabled).then_some(settings)
}

fn protocol(env: &Environment) -> Protocol {
    let known = [("http/protobuf", Protocol::HttpProtobuf), ("grpc", Protocol::Grpc)];
    let general = env.choice("OTEL_EXPORTER_OTLP_PROTOCOL", Protocol::HttpProtobuf, &known);
    env.choice("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", general, &known)
}

/// Uses the address for traces unchanged. For HTTP, appends the path of traces to the general address.
fn endpoint(env: &Environment, protocol: Protocol) -> Option<String> {
    let read = |name| {
        let text = env.optional(name).filter(|text| !text.is_empty())?;
        let url = text.parse::<Url>().ok();
        let url = url.filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
        match &url {
            None => env.refuse(name, "must be a URL such as http://otel-collector:4318"),
            Some(url) if !url.username().is_empty() || url.password().is_some() => {
                env.refuse(
                    name,
                    "must not contain a user or a password; set a key in OTEL_EXPORTER_OTLP_HEADERS",
                );
            }
            Some(url) if url.scheme() == "https" && protocol == Protocol::Grpc => {
                env.refuse(name, "must begin with http:// for grpc; TLS needs the protocol http/protobuf");
            }
            Some(_) => {}
        }
        url
    };
    let of_traces = read("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    let general = read("OTEL_EXPORTER_OTLP_ENDPOINT");
    match (of_traces, general) {
        (Some(url), _) => Some(url.to_string()),
        (None, Some(url)) if protocol == Protocol::HttpProtobuf => {
            Some(format!("{}/v1/traces", url.as_str().trim_end_matches('/')))
        }
        (None, url) => url.map(|url| url.to_string()),
    }
}

fn timeout(env: &Environment) -> Duration {
    const MAX_MILLIS: u64 = 600_000;
    let general = env.number("OTEL_EXPORTER_OTLP_TIMEOUT", 10_000, 1..=MAX_MILLIS);
    env.millis("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", general, 1..=MAX_MILLIS)
}

fn headers(env: &Environment) -> HeaderMap {
    let read = |name| {
        let header = |(key, value): (String, String)| {
            let mut value = value.parse::<HeaderValue>().ok()?;
            value.set_sensitive(true);
            Some((key.parse::<HeaderName>().ok()?, value))
        };
        let pairs = pairs(&env.optional(name)?);
        pairs.and_then(|pairs| pairs.into_iter().map(header).collect::<Option<HeaderMap>>()).or_else(|| {
            env.refuse(name, "must be headers such as api-key=secret,tenant=shop");
            None
        })
    };
    let general = read("OTEL_EXPORTER_OTLP_HEADERS");
    read("OTEL_EXPORTER_OTLP_TRACES_HEADERS").or(general).unwrap_or_default()
}

/// `OTEL_SERVICE_NAME` overrides a `service.name` in `OTEL_RESOURCE_ATTRIBUTES`.
fn resource(env: &Environment) -> Vec<(String, String)> {
    const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
    let given = env.optional(ATTRIBUTES).and_then(|text| {
        pairs(&text).or_else(|| {
            env.refuse(
                ATTRIBUTES,
                "must be attributes such as deployment.environment.name=test,service.namespace=shop",
            );
            None
        })
    });
    let mut resource = vec![("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
    let mut service = SERVICE.to_owned();
    for (key, value) in given.into_iter().flatten() {
        if key == "service.name" {
            service = value;
        } else {
            resource.retain(|(known, _)| *known != key);
            resource.push((key, value));
        }
    }
    resource.push(("service.name".to_owned(), env.text("OTEL_SERVICE_NAME", &service)));
    resource
}

/// Parses `key=value,key=value` with percent-encoded values. `None` if it is malformed.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        (!key.trim().is_empty()).then(|| (key.trim().to_owned(), value.into_owned()))
    };
    pairs.map(pair).collect()
}

fn sampler(env: &Environment) -> Sampler {
    const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
    let ratio = env.text(ARGUMENT, "1.0").parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    let ratio = ratio.unwrap_or_else(|| {
        env.refuse(ARGUMENT, "must be a number from 0 to 1");
        1.0
    });
    let known = [
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
        "always_on",
        "always_off",
        "traceidratio",
    ];
    let name = env.choice("OTEL_TRACES_SAMPLER", known[0], &known.map(|name| (name, name)));
    let root = name.strip_prefix("parentbased_");
    let sampler = match root.unwrap_or(name) {
        "always_on" => Sampler::AlwaysOn,
        "always_off" => Sampler::AlwaysOff,
        _ => Sampler::TraceIdRatioBased(ratio),
    };
    if root.is_some() { Sampler::ParentBased(Box::new(sampler)) } else { sampler }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Option<TraceSettings> {
        let env = variables.iter().fold(Environment::default(), |env, (name, value)| env.with(name, *value));
        traces(&env)
    }

    #[test]
    fn without_an_endpoint_or_with_the_sdk_disabled_there_are_no_traces() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel-collector:4318");
        assert!(read(&[]).is_none() && read(&[endpoint]).is_some());
        assert!(read(&[endpoint, ("OTEL_SDK_DISABLED", "true")]).is_none());
        assert!(read(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]).is_none());
    }

    #[test]
    fn the_traces_endpoint_is_used_unchanged_and_the_general_one_gets_the_traces_path() {
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:4318/in/");
        let of_traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces/here");
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        let address = |variables: &[(&str, &str)]| read(variables).unwrap().endpoint;
        assert_eq!(address(&[general]), "http://otel:4318/in/v1/traces");
        assert_eq!(address(&[general, of_traces]), "https://traces/here");
        assert_eq!(address(&[general, grpc]), "http://otel:4318/in/");
    }

    #[test]
    fn trace_variables_override_the_general_ones() {
        let settings = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=general"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", " api-key = for%20traces , tenant=shop"),
        ]);
        let settings = settings.unwrap();
        assert_eq!(settings.protocol, Protocol::HttpProtobuf);
        assert_eq!(settings.timeout, Duration::from_millis(2));
        assert_eq!(
            (&settings.headers["api-key"], &settings.headers["tenant"]),
            (&"for traces".parse().unwrap(), &"shop".parse().unwrap())
        );
        assert!(!format!("{settings:?}").contains("for traces"));
    }

    #[test]
    fn the_service_name_overrides_the_resource_attribute() {
        let of = |variables: &[(&str, &str)]| {
            let env =
                variables.iter().fold(Environment::default(), |env, (name, value)| env.with(name, *value));
            let all = resource(&env).into_iter();
            all.filter(|(key, _)| key != "service.version")
                .map(|(key, value)| format!("{key}={value}"))
                .collect::<Vec<_>>()
        };
        let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=orders,place=a%2Cb");
        assert_eq!(of(&[]), ["service.name=order-service"]);
        assert_eq!(of(&[attributes]), ["place=a,b", "service.name=orders"]);
        assert_eq!(of(&[attributes, ("OTEL_SERVICE_NAME", "shop")]), ["place=a,b", "service.name=shop"]);
    }

    #[test]
    fn every_sampler_of_the_specification_is_supported() {
        let of = |sampler: &str| {
            let env = Environment::default()
                .with("OTEL_TRACES_SAMPLER", sampler)
                .with("OTEL_TRACES_SAMPLER_ARG", "0.25");
            format!("{:?}", self::sampler(&env))
        };
        assert_eq!(of("parentbased_always_on"), "ParentBased(AlwaysOn)");
        assert_eq!(of("parentbased_always_off"), "ParentBased(AlwaysOff)");
        assert_eq!(of("parentbased_traceidratio"), "ParentBased(TraceIdRatioBased(0.25))");
        assert_eq!(of("always_on"), "AlwaysOn");
        assert_eq!(of("always_off"), "AlwaysOff");
        assert_eq!(of("traceidratio"), "TraceIdRatioBased(0.25)");
        assert_eq!(format!("{:?}", sampler(&Environment::default())), "ParentBased(AlwaysOn)");
    }
}
