//! Load that reaches every metric: all activities of a shop, repeated.

use std::time::Duration;

use serde_json::json;

use crate::support::{Builder, Payment, Shop, admin, customer, lines};

/// Customers, admins and payments of one shop.
pub(super) struct Trade<'a> {
    shop: &'a Shop,
    phone: String,
    rare: String,
    failing: Option<String>,
    round: usize,
}

impl<'a> Trade<'a> {
    /// A shop whose metrics all have samples.
    pub(super) fn builder() -> Builder {
        Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").with("DUPLICATE_WINDOW_SECONDS", "60")
    }

    pub(super) async fn prepare(shop: &'a Shop) -> Self {
        let phone = shop.product("phone", "10", 1_000_000_000).await;
        let rare = shop.product("rare", "10", 1).await;
        let failing = shop.product("failing", "10", 1).await;
        shop.fault(&failing, &json!({"kind": "status", "status": 500})).await;
        Self { shop, phone, rare, failing: Some(failing), round: 0 }
    }

    /// Load that needs no operator.
    pub(super) fn without_failures(mut self) -> Self {
        self.failing = None;
        self
    }

    /// Runs until it is dropped.
    pub(super) async fn go_on(&mut self) {
        loop {
            self.round().await;
            // Moderate load, far below the capacity of the machine.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Places the first order of a customer.
    async fn placed(&self, name: &str) -> (String, String) {
        let email = format!("{name}{}@example.com", self.round);
        let order = self.shop.placed(&email, &[(&self.phone, 1)]).await;
        (email, order)
    }

    async fn round(&mut self) {
        self.round += 1;
        let (email, paid) = self.placed("paid").await;
        self.shop.get(customer(&email), &format!("/api/orders/{paid}")).await.expect(200);
        self.shop.get(customer(&email), "/api/orders/my").await.expect(200);
        self.shop.get(admin(), "/api/orders").await.expect(200);
        self.shop.get(admin(), &format!("/api/orders/{paid}/history")).await.expect(200);
        self.shop.pay(&Payment::success(&paid, "10")).await;
        self.with_key().await;
        let (_, confirmed) = self.placed("confirmed").await;
        self.shop.set_status(&confirmed, "CONFIRMED").await.expect(200);
        let (email, cancelled) = self.placed("cancelled").await;
        self.cancel(&email, &cancelled).await;
        self.refused().await;
        if let Some(failing) = &self.failing {
            let order = lines(&[(failing, 1)]);
            self.shop.place(customer("eve@example.com"), &order).await.expect(503);
            self.wrong_payments(&cancelled).await;
            // The same lines without a key return the first order.
            self.shop.place(customer(&email), &lines(&[(&self.phone, 1)])).await;
        }
    }

    async fn with_key(&self) {
        for _ in 0..2 {
            let order = lines(&[(&self.phone, 2)]);
            let call = self.shop.call("POST", "/api/orders").by(customer("key@example.com")).json(&order);
            call.header("Idempotency-Key", format!("k-{}", self.round)).send().await.expect(201);
        }
    }

    async fn cancel(&self, email: &str, order: &str) {
        let path = format!("/api/orders/{order}/cancel");
        self.shop.call("POST", &path).by(customer(email)).send().await.expect(200);
    }

    async fn refused(&self) {
        let order = lines(&[(&self.rare, 2)]);
        self.shop.place(customer("bob@example.com"), &order).await.expect(400);
    }

    /// A payment after the cancellation, and a payment of no order.
    async fn wrong_payments(&self, cancelled: &str) {
        self.shop.pay(&Payment::success(cancelled, "10")).await;
        self.shop.pay(&Payment::success(&uuid::Uuid::now_v7().to_string(), "10")).await;
    }
}
