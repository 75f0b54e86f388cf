//! The topics on the broker: creates them with safe settings, and warns of unsafe settings of existing ones.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use tracing::{debug, info, warn};

use super::client::connection_config;
use super::{KafkaSettings, PublishError};

const MIN_INSYNC: &str = "min.insync.replicas";
const CLEANUP: &str = "cleanup.policy";
const UNCLEAN: &str = "unclean.leader.election.enable";

/// The timeout for reading a configuration.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

type Admin = AdminClient<DefaultClientContext>;

/// A topic in the broker's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownTopic {
    pub(super) name: String,
    /// The number of replicas of the partition with the fewest.
    replicas: usize,
}

impl KnownTopic {
    pub(super) fn find(metadata: &Metadata, name: &str) -> Option<Self> {
        let topic = metadata.topics().iter().find(|topic| topic.name() == name)?;
        let replicas = topic.partitions().iter().map(|partition| partition.replicas().len());
        Some(Self { name: name.to_owned(), replicas: replicas.min().unwrap_or_default() })
    }
}

/// Creates the topic of the order events. `broker` is any broker that is up, for the default replication factor.
pub(super) async fn create(settings: &KafkaSettings, broker: Option<i32>) -> Result<(), PublishError> {
    let KafkaSettings { partitions, replication, .. } = settings;
    let admin: Admin = connection_config(settings).create()?;
    let replicas = match (replication, broker) {
        (-1, Some(broker)) => default_replication(&admin, broker).await,
        (replication, _) => Some(*replication),
    };
    let min_insync = min_insync_replicas(settings, replicas);
    let new = new_topic(settings, min_insync.as_deref());
    let options = AdminOptions::new().request_timeout(Some(settings.delivery_timeout));
    match admin.create_topics([&new], &options).await?.into_iter().next() {
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
        Some(Err((topic, code))) => Err(PublishError::TopicRefused(topic, code)),
        Some(Ok(_)) | None => {
            info!(topic = settings.topic, partitions, replication, min_insync, "created the topic");
            Ok(())
        }
    }
}

/// The setting, or 2 if there are at least 3 replicas, so that the loss of one broker loses no acknowledged event.
/// None: the broker's default.
fn min_insync_replicas(settings: &KafkaSettings, replicas: Option<i32>) -> Option<String> {
    let safe = replicas.is_some_and(|replicas| replicas >= 3).then_some(2);
    settings.min_insync_replicas.or(safe).map(|replicas| replicas.to_string())
}

fn new_topic<'a>(settings: &'a KafkaSettings, min_insync: Option<&'a str>) -> NewTopic<'a> {
    let replication = TopicReplication::Fixed(settings.replication);
    let new = NewTopic::new(&settings.topic, settings.partitions, replication);
    match min_insync {
        Some(replicas) => new.set(MIN_INSYNC, replicas),
        None => new,
    }
}

async fn default_replication(admin: &Admin, broker: i32) -> Option<i32> {
    let config = describe(admin, &ResourceSpecifier::Broker(broker)).await.ok()?;
    config.get("default.replication.factor")?.parse().ok()
}

/// Warns of unsafe settings of topics. A refusal of the broker is not an error, because the account may lack the
/// permission.
pub(super) async fn warn_of_unsafe_settings(settings: KafkaSettings, topics: Vec<KnownTopic>) {
    for topic in topics {
        match unsafe_settings(&settings, &topic).await {
            Ok(found) if found.is_empty() => {}
            Ok(found) => warn!(topic = topic.name, "the topic is not safe: {}", found.join("; ")),
            Err(error) => debug!(topic = topic.name, %error, "the settings of the topic cannot be read"),
        }
    }
}

async fn unsafe_settings(settings: &KafkaSettings, topic: &KnownTopic) -> Result<Vec<String>, KafkaError> {
    let admin: Admin = connection_config(settings).create()?;
    let config = describe(&admin, &ResourceSpecifier::Topic(&topic.name)).await?;
    Ok(judge(topic.replicas, &config))
}

async fn describe(
    admin: &Admin,
    resource: &ResourceSpecifier<'_>,
) -> Result<BTreeMap<String, String>, KafkaError> {
    let options = AdminOptions::new().request_timeout(Some(DESCRIBE_TIMEOUT));
    let told = admin.describe_configs([resource], &options).await?.into_iter().next();
    let entries = match told {
        Some(Ok(ConfigResource { entries, .. })) => entries,
        Some(Err(code)) => return Err(KafkaError::AdminOp(code)),
        None => Vec::new(),
    };
    Ok(entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
}

/// The settings of a topic that can lose events, each as `setting=value` with the reason.
fn judge(replicas: usize, config: &BTreeMap<String, String>) -> Vec<String> {
    let value = |name| config.get(name).map(String::as_str);
    let mut found = Vec::new();
    if let Some(text) = value(MIN_INSYNC)
        && let Ok(min) = text.parse::<usize>()
    {
        if replicas >= 2 && min < 2 {
            found.push(format!(
                "{MIN_INSYNC}={text} with {replicas} replicas: an event that one broker acknowledged is lost with its disk"
            ));
        } else if min > replicas {
            found.push(format!("{MIN_INSYNC}={text} with {replicas} replicas: the broker accepts no event"));
        }
    }
    if let Some(text) = value(CLEANUP)
        && text != "delete"
    {
        found.push(format!("{CLEANUP}={text}: the topic keeps only the last event of each order"));
    }
    if let Some(text) = value(UNCLEAN)
        && text != "false"
    {
        found.push(format!(
            "{UNCLEAN}={text}: a replica that lacks acknowledged events can become the leader"
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Environment};

    fn found(replicas: usize, config: &[(&str, &str)]) -> String {
        let config = config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        judge(replicas, &config).join("; ")
    }

    fn settings(variables: &[(&'static str, &str)]) -> KafkaSettings {
        let required = [
            ("DATABASE_URL", "postgres://localhost/shop"),
            ("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092"),
            ("PRODUCT_SERVICE_URL", "http://localhost"),
        ];
        let all = required.iter().chain(variables);
        let environment = all.fold(Environment::default(), |all, (name, value)| all.with(name, *value));
        Config::read(&environment).unwrap().kafka
    }

    /// The configuration in the request for a new topic on brokers with this default replication factor.
    fn requested(variables: &[(&'static str, &str)], replicas: Option<i32>) -> Vec<(String, String)> {
        let settings = settings(variables);
        let replicas = replicas.or(Some(settings.replication));
        let min_insync = min_insync_replicas(&settings, replicas);
        let new = new_topic(&settings, min_insync.as_deref());
        new.config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_new_topic_with_three_replicas_is_safe_with_two_in_sync() {
        let two = [(MIN_INSYNC.to_owned(), "2".to_owned())];
        assert_eq!(requested(&[("KAFKA_TOPIC_REPLICATION", "3")], None), two);
        assert_eq!(requested(&[("KAFKA_TOPIC_REPLICATION", "5")], None), two);
        assert_eq!(requested(&[], Some(3)), two);
        // With two replicas, the loss of one broker would stop all writes.
        assert_eq!(requested(&[("KAFKA_TOPIC_REPLICATION", "2")], None), []);
        assert_eq!(requested(&[], Some(1)), []);
    }

    #[test]
    fn the_setting_for_replicas_in_sync_is_requested() {
        let set = [("KAFKA_TOPIC_REPLICATION", "3"), ("KAFKA_TOPIC_MIN_INSYNC_REPLICAS", "3")];
        assert_eq!(requested(&set, None), [(MIN_INSYNC.to_owned(), "3".to_owned())]);
    }

    #[test]
    fn safe_or_unknown_settings_log_no_warning() {
        let safe = [(MIN_INSYNC, "2"), (CLEANUP, "delete"), (UNCLEAN, "false")];
        assert_eq!(found(3, &safe), "");
        assert_eq!(found(2, &safe), "");
        assert_eq!(found(1, &[(MIN_INSYNC, "1")]), "");
        assert_eq!(found(3, &[]), "");
    }

    #[test]
    fn unsafe_settings_are_named_with_their_values() {
        let all = found(3, &[(MIN_INSYNC, "1"), (CLEANUP, "compact"), (UNCLEAN, "true")]);
        for named in
            ["min.insync.replicas=1", "cleanup.policy=compact", "unclean.leader.election.enable=true"]
        {
            assert!(all.contains(named), "{all}");
        }
        assert!(found(3, &[(CLEANUP, "compact,delete")]).starts_with("cleanup.policy=compact,delete:"));
        assert!(found(2, &[(MIN_INSYNC, "3")]).contains("accepts no event"));
    }
}
