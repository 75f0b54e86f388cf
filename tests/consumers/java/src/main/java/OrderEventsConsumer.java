import java.math.BigDecimal;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.SQLException;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.RetriableCommitFailedException;
import org.apache.kafka.clients.consumer.CommitFailedException;
import org.apache.kafka.common.errors.RebalanceInProgressException;
import org.apache.kafka.common.serialization.StringDeserializer;
import tools.jackson.databind.DeserializationFeature;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/** Keeps a projection of every order in PostgreSQL: one row per order with its status and amount. */
public final class OrderEventsConsumer {
    /** Reads amounts as decimals: 5497.10 stays 5497.10. */
    private static final JsonMapper JSON =
            JsonMapper.builder().enable(DeserializationFeature.USE_BIG_DECIMAL_FOR_FLOATS).build();

    private OrderEventsConsumer() {}

    public static void main(String[] arguments) throws SQLException {
        Map<String, Object> settings = Map.of(
                "bootstrap.servers", System.getenv("KAFKA_BOOTSTRAP_SERVERS"),
                "group.id", setting("CONSUMER_GROUP", "order-projection"),
                "key.deserializer", StringDeserializer.class,
                "value.deserializer", StringDeserializer.class,
                // A new consumer starts with the oldest event, not with the latest.
                "auto.offset.reset", "earliest",
                // The offset is committed below, after the work.
                "enable.auto.commit", false,
                "session.timeout.ms", 10_000);
        try (Connection database = DriverManager.getConnection(System.getenv("JDBC_URL"));
                KafkaConsumer<String, String> consumer = new KafkaConsumer<>(settings)) {
            database.createStatement().execute("""
                    create table if not exists order_projection (
                        order_id text primary key,
                        status   text not null,
                        amount   numeric not null,
                        sequence integer not null,
                        changes  integer not null)""");
            consumer.subscribe(List.of(setting("ORDER_EVENTS_TOPIC", "order-events")));
            while (true) {
                for (ConsumerRecord<String, String> record : consumer.poll(Duration.ofSeconds(1))) {
                    // A failure ends the program before the commit: the next start reads this event again.
                    apply(database, JSON.readTree(record.value()));
                }
                try {
                    consumer.commitSync();
                } catch (CommitFailedException | RebalanceInProgressException | RetriableCommitFailedException e) {
                    // The partition moved to another consumer, which reads these events again and drops them.
                    System.err.println("not committed: " + e.getMessage());
                }
            }
        }
    }

    private static void apply(Connection database, JsonNode event) throws SQLException {
        String order = event.get("entityId").asString();
        BigDecimal amount = event.get("amount").decimalValue();
        String status = event.get("metadata").get("status").asString();
        int sequence = event.get("metadata").get("sequence").asInt();
        int changed = switch (event.get("eventType").asString()) {
            case "ORDER_PLACED" -> update(database, """
                    insert into order_projection (order_id, status, amount, sequence, changes)
                    values (?, ?, ?, ?, 1) on conflict (order_id) do nothing""", order, status, amount, sequence);
            case "ORDER_STATUS_UPDATED" -> update(database, """
                    update order_projection set status = ?, sequence = ?, changes = changes + 1
                    where order_id = ? and sequence = ? - 1""", status, sequence, order, sequence);
            // An unknown event type: only its sequence counts.
            default -> update(database, """
                    update order_projection set sequence = ?, changes = changes + 1
                    where order_id = ? and sequence = ? - 1""", sequence, order, sequence);
        };
        // No row changed: the event is a repeat, which is dropped, or an earlier event is missing.
        if (changed == 0 && update(database, """
                update order_projection set sequence = sequence
                where order_id = ? and sequence >= ?""", order, sequence) == 0) {
            throw new IllegalStateException("order " + order + ": an event before " + sequence + " is missing");
        }
    }

    /** Runs a statement; returns how many rows it changed. */
    private static int update(Connection database, String sql, Object... values) throws SQLException {
        try (PreparedStatement statement = database.prepareStatement(sql)) {
            for (int i = 0; i < values.length; i++) {
                statement.setObject(i + 1, values[i]);
            }
            return statement.executeUpdate();
        }
    }

    private static String setting(String name, String otherwise) {
        return System.getenv().getOrDefault(name, otherwise);
    }
}
