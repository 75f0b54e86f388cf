// Keeps a projection of every order in PostgreSQL: one row per order with its status and amount.
import { Kafka, logLevel } from "kafkajs";
import pg from "pg";

const {
  KAFKA_BOOTSTRAP_SERVERS,
  DATABASE_URL,
  ORDER_EVENTS_TOPIC = "order-events",
  CONSUMER_GROUP = "order-projection",
} = process.env;

const database = new pg.Pool({ connectionString: DATABASE_URL, max: 2 });
await database.query(`
  create table if not exists order_projection (
    order_id text primary key,
    status   text not null,
    amount   numeric not null,
    sequence integer not null,
    changes  integer not null)`);

// The amount goes from the text of the event to the column without becoming a JavaScript number, which is a float.
const PLACED = `
  insert into order_projection (order_id, status, amount, sequence, changes)
  select $2, event #>> '{metadata,status}', (event ->> 'amount')::numeric, $3, 1 from (select $1::jsonb) as it (event)
  on conflict (order_id) do nothing`;
const STATUS_UPDATED = `
  update order_projection set status = $1::jsonb #>> '{metadata,status}', sequence = $3, changes = changes + 1
  where order_id = $2 and sequence = $3 - 1`;
// An unknown event type: only its sequence counts.
const UNKNOWN = `
  update order_projection set sequence = $3, changes = changes + 1
  where $1::jsonb is not null and order_id = $2 and sequence = $3 - 1`;
const REPEAT = "select from order_projection where order_id = $1 and sequence >= $2";
const STATEMENTS = { ORDER_PLACED: PLACED, ORDER_STATUS_UPDATED: STATUS_UPDATED };

async function apply(text) {
  const { eventType, entityId, metadata } = JSON.parse(text);
  const statement = STATEMENTS[eventType] ?? UNKNOWN;
  const changed = await database.query(statement, [text, entityId, metadata.sequence]);
  if (changed.rowCount > 0) return;
  // No row changed: the event is a repeat, which is dropped, or an earlier event is missing.
  const repeat = await database.query(REPEAT, [entityId, metadata.sequence]);
  if (repeat.rowCount === 0) throw new Error(`order ${entityId}: an event before ${metadata.sequence} is missing`);
}

const kafka = new Kafka({ brokers: KAFKA_BOOTSTRAP_SERVERS.split(","), logLevel: logLevel.WARN });
const consumer = kafka.consumer({ groupId: CONSUMER_GROUP, sessionTimeout: 10_000, heartbeatInterval: 1_000 });
// kafkajs restarts by itself after a temporary error. After any other error the program ends, and its supervisor restarts it.
consumer.on(consumer.events.CRASH, ({ payload }) => {
  if (!payload.restart) process.exit(1);
});
await consumer.connect();
// A new consumer starts with the oldest event, not with the latest.
await consumer.subscribe({ topics: [ORDER_EVENTS_TOPIC], fromBeginning: true });
// kafkajs commits the offset of a message only after this function has returned, and retries after a failure.
await consumer.run({ eachMessage: ({ message }) => apply(message.value.toString()) });
