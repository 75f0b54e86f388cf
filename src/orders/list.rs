//! Listing orders.

use super::OrderService;
use crate::domain::access::Admin;
use crate::domain::{Identity, OrderSummary};
use crate::store::{Cursor, ListQuery, StoreError};

impl OrderService {
    /// A page of the caller's own orders, even if the query names another customer, and the cursor of the next page.
    pub async fn list_mine(
        &self,
        caller: &Identity,
        query: ListQuery,
    ) -> Result<(Vec<OrderSummary>, Option<Cursor>), StoreError> {
        let query = ListQuery { customer: Some(caller.customer.clone()), ..query };
        self.store.list_orders(&query).await
    }

    /// A page of all orders, for admins, and the cursor of the next page.
    pub async fn list_all(
        &self,
        _: Admin<'_>,
        query: ListQuery,
    ) -> Result<(Vec<OrderSummary>, Option<Cursor>), StoreError> {
        self.store.list_orders(&query).await
    }
}
