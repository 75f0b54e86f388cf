package com.shopverse.consumers;

import java.math.BigDecimal;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.context.annotation.Bean;
import org.springframework.jdbc.core.JdbcTemplate;
import org.springframework.kafka.annotation.KafkaListener;
import org.springframework.kafka.listener.DefaultErrorHandler;
import org.springframework.util.backoff.FixedBackOff;
import tools.jackson.databind.DeserializationFeature;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/** Keeps a projection of every order in PostgreSQL: one row per order with its status and amount. */
@SpringBootApplication
public class OrderEventsListener {
    /** Reads amounts as decimals: 5497.10 stays 5497.10. */
    private final JsonMapper json =
            JsonMapper.builder().enable(DeserializationFeature.USE_BIG_DECIMAL_FOR_FLOATS).build();

    private final JdbcTemplate database;

    OrderEventsListener(JdbcTemplate database) {
        this.database = database;
    }

    public static void main(String[] arguments) {
        SpringApplication.run(OrderEventsListener.class, arguments);
    }

    /** By default Spring skips an event after ten failed attempts; this handler retries until it succeeds. */
    @Bean
    static DefaultErrorHandler neverSkip() {
        DefaultErrorHandler handler = new DefaultErrorHandler(new FixedBackOff(1_000, FixedBackOff.UNLIMITED_ATTEMPTS));
        // Also retry exceptions that Spring considers fatal, such as a ClassCastException.
        handler.setClassifications(java.util.Map.of(), true);
        return handler;
    }

    @KafkaListener(topics = "${ORDER_EVENTS_TOPIC:order-events}")
    void on(String value) {
        JsonNode event = json.readTree(value);
        String order = event.get("entityId").asString();
        BigDecimal amount = event.get("amount").decimalValue();
        String status = event.get("metadata").get("status").asString();
        int sequence = event.get("metadata").get("sequence").asInt();
        int changed = switch (event.get("eventType").asString()) {
            case "ORDER_PLACED" -> database.update("""
                    insert into order_projection (order_id, status, amount, sequence, changes)
                    values (?, ?, ?, ?, 1) on conflict (order_id) do nothing""", order, status, amount, sequence);
            case "ORDER_STATUS_UPDATED" -> database.update("""
                    update order_projection set status = ?, sequence = ?, changes = changes + 1
                    where order_id = ? and sequence = ? - 1""", status, sequence, order, sequence);
            // An unknown event type: only its sequence counts.
            default -> database.update("""
                    update order_projection set sequence = ?, changes = changes + 1
                    where order_id = ? and sequence = ? - 1""", sequence, order, sequence);
        };
        // No row changed: the event is a repeat, which is dropped, or an earlier event is missing.
        if (changed == 0 && !isRepeat(order, sequence)) {
            throw new IllegalStateException("order " + order + ": an event before " + sequence + " is missing");
        }
    }

    private boolean isRepeat(String order, int sequence) {
        return Boolean.TRUE.equals(database.queryForObject(
                "select exists (select from order_projection where order_id = ? and sequence >= ?)",
                Boolean.class, order, sequence));
    }
}
