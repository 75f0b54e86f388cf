//! Who moved an order.

use std::fmt;

use super::words::words;
use super::{Identity, Role};

words! {
    /// As what somebody moved an order.
    ActorRole {
        /// Its owner.
        Customer = "CUSTOMER",
        /// An admin.
        Admin = "ADMIN",
        /// The Payment Service, by an event.
        Payment = "PAYMENT",
        /// This service, by itself.
        System = "SYSTEM",
    }
}

/// Who moved an order.
#[derive(Clone, PartialEq, Eq)]
pub struct Actor {
    /// As what.
    pub role: ActorRole,
    /// An e-mail address, or the name of a service.
    pub id: String,
}

impl Actor {
    /// Somebody who called.
    pub fn caller(caller: &Identity) -> Self {
        let role = match caller.role {
            Role::Customer => ActorRole::Customer,
            Role::Admin => ActorRole::Admin,
        };
        Self { role, id: caller.customer.as_str().to_owned() }
    }

    /// The Payment Service.
    pub fn payment() -> Self {
        Self { role: ActorRole::Payment, id: "PAYMENT_SERVICE".to_owned() }
    }

    /// This service.
    pub fn system() -> Self {
        Self { role: ActorRole::System, id: "ORDER_SERVICE".to_owned() }
    }
}

/// Without the address of a person.
impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Actor({})", self.role.as_str())
    }
}
