"""Keeps a projection of every order in PostgreSQL: one row per order with its status and amount."""

import json
import os
from decimal import Decimal

import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException

TABLE = """
    create table if not exists order_projection (
        order_id text primary key,
        status   text not null,
        amount   numeric not null,
        sequence integer not null,
        changes  integer not null)"""
PLACED = """
    insert into order_projection (order_id, status, amount, sequence, changes)
    values (%(order)s, %(status)s, %(amount)s, %(sequence)s, 1) on conflict (order_id) do nothing"""
STATUS_UPDATED = """
    update order_projection set status = %(status)s, sequence = %(sequence)s, changes = changes + 1
    where order_id = %(order)s and sequence = %(sequence)s - 1"""
# An unknown event type: only its sequence counts.
UNKNOWN = """
    update order_projection set sequence = %(sequence)s, changes = changes + 1
    where order_id = %(order)s and sequence = %(sequence)s - 1"""
REPEAT = "select from order_projection where order_id = %(order)s and sequence >= %(sequence)s"
STATEMENTS = {"ORDER_PLACED": PLACED, "ORDER_STATUS_UPDATED": STATUS_UPDATED}


def apply(database, text):
    # Amounts are decimals: 5497.10 stays 5497.10.
    event = json.loads(text, parse_float=Decimal)
    values = {
        "order": event["entityId"],
        "amount": event["amount"],
        "status": event["metadata"]["status"],
        "sequence": event["metadata"]["sequence"],
    }
    if database.execute(STATEMENTS.get(event["eventType"], UNKNOWN), values).rowcount > 0:
        return
    # No row changed: the event is a repeat, which is dropped, or an earlier event is missing.
    if database.execute(REPEAT, values).rowcount == 0:
        raise LookupError(f"order {values['order']}: an event before {values['sequence']} is missing")


def main():
    consumer = Consumer({
        "bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"],
        "group.id": os.environ.get("CONSUMER_GROUP", "order-projection"),
        # A new consumer starts with the oldest event, not with the latest.
        "auto.offset.reset": "earliest",
        # The client commits stored offsets every few seconds; the code below stores them after the work.
        "enable.auto.offset.store": False,
        "session.timeout.ms": 10_000,
    })
    consumer.subscribe([os.environ.get("ORDER_EVENTS_TOPIC", "order-events")])
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as database:
        database.execute(TABLE)
        while True:
            message = consumer.poll(1.0)
            if message is None:
                continue
            error = message.error()
            if error is None:
                # A failure ends the program before the offset is stored: the next start reads this event again.
                apply(database, message.value())
                consumer.store_offsets(message)
            elif error.fatal() or error.code() not in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT):
                raise KafkaException(error)


main()
