//! The requests of the clients; each is a function of its number.

use std::io::Write as _;

use uuid::Uuid;

/// Products in the catalogue of the stub, used with equal probability.
pub(crate) const PRODUCTS: u64 = 1000;
/// The price of each product.
pub(crate) const PRICE: &str = "24.99";
/// The total of two units of the first product and one of the second.
pub(crate) const TOTAL: &str = "74.97";
/// The number of orders per customer in filled tables.
pub(crate) const ORDERS_A_CUSTOMER: u64 = 10;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// `POST /api/orders` with two lines, each by another customer.
    Place,
    /// The same with a new `Idempotency-Key`.
    PlaceWithKey,
    /// Always the same two products: a flash sale.
    PlaceHot,
    /// `GET /api/orders/{id}` by its owner, from this number of orders.
    Read(u64),
    /// `GET /api/orders/my` with ten orders, from this number of orders in total.
    ListMy(u64),
    /// `GET /api/orders` as an admin, 50 orders.
    ListAll,
    /// `PUT /api/orders/{id}/status`, once per order, from the first number to the second (exclusive).
    Confirm(u64, u64),
}

impl Work {
    /// The expected status of the answer.
    pub(crate) fn expected(self) -> u16 {
        match self {
            Self::Place | Self::PlaceWithKey | Self::PlaceHot => 201,
            Self::Read(_) | Self::ListMy(_) | Self::ListAll | Self::Confirm(..) => 200,
        }
    }

    /// Writes the request of this number; returns false if there are no more. `run` separates the customers of
    /// different loads.
    pub(crate) fn render(self, run: u64, number: u64, request: &mut Vec<u8>) -> bool {
        request.clear();
        match self {
            Self::Place => place(run, number, false, products(mix(run ^ mix(number))), request),
            Self::PlaceWithKey => place(run, number, true, products(mix(run ^ mix(number))), request),
            Self::PlaceHot => place(run, number, false, (1, 2), request),
            Self::Read(orders) => {
                let order = mix(run ^ mix(number)) % orders;
                let path = format!("/api/orders/{}", order_id(order));
                get(&path, &customer_of(order), "CUSTOMER", request);
            }
            Self::ListMy(orders) => {
                get("/api/orders/my", &customer_of(mix(run ^ mix(number)) % orders), "CUSTOMER", request);
            }
            Self::ListAll => get("/api/orders", "admin@example.com", "ADMIN", request),
            Self::Confirm(first, end) if first + number < end => confirm(first + number, request),
            Self::Confirm(..) => return false,
        }
        true
    }
}

/// The id of an order of a filled table, from its number; `sql/fill.sql` computes the same id.
pub(crate) fn order_id(order: u64) -> Uuid {
    Uuid::from_u64_pair(0x0190_0000_0000_7000, 0x8000_0000_0000_0000 | order)
}

pub(crate) fn product_id(product: u64) -> String {
    format!("P{product}")
}

fn customer_of(order: u64) -> String {
    format!("customer-{}@example.com", order / ORDERS_A_CUSTOMER)
}

/// Two different products.
fn products(random: u64) -> (u64, u64) {
    let first = random % PRODUCTS;
    (first, (first + 1 + (random >> 32) % (PRODUCTS - 1)) % PRODUCTS)
}

fn place(run: u64, number: u64, keyed: bool, (first, second): (u64, u64), request: &mut Vec<u8>) {
    let body = format!(
        r#"{{"items":[{{"productId":"P{first}","quantity":2}},{{"productId":"P{second}","quantity":1}}]}}"#
    );
    let key = if keyed { format!("Idempotency-Key: {run}-{number}\r\n") } else { String::new() };
    // Writes to a Vec never fail.
    let _ = write!(
        request,
        "POST /api/orders HTTP/1.1\r\nHost: bench\r\nX-User-Email: {run}.{number}@example.com\r\n\
         X-User-Role: CUSTOMER\r\n{key}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
}

fn get(path: &str, customer: &str, role: &str, request: &mut Vec<u8>) {
    let _ = write!(
        request,
        "GET {path} HTTP/1.1\r\nHost: bench\r\nX-User-Email: {customer}\r\nX-User-Role: {role}\r\n\r\n"
    );
}

fn confirm(order: u64, request: &mut Vec<u8>) {
    let body = r#"{"status":"CONFIRMED"}"#;
    let _ = write!(
        request,
        "PUT /api/orders/{}/status HTTP/1.1\r\nHost: bench\r\nX-User-Email: admin@example.com\r\n\
         X-User-Role: ADMIN\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        order_id(order),
        body.len()
    );
}

/// `SplitMix64`: maps consecutive numbers to numbers without a pattern.
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
