//! Who changed the status of an order.

use std::fmt;

use serde::Serialize;
use strum::{EnumString, IntoStaticStr, VariantArray};
use utoipa::ToSchema;

use super::{Identity, Role};

/// The role in which an actor changed an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
#[strum(serialize_all = "UPPERCASE", const_into_str)]
pub enum ActorRole {
    /// The owner of the order.
    Customer,
    /// An admin.
    Admin,
    /// The Payment Service, by an event.
    Payment,
    /// This service itself.
    System,
}

/// Who changed the status of an order.
#[derive(Clone, PartialEq, Eq)]
pub struct Actor {
    pub role: ActorRole,
    /// An e-mail address, or the name of a service.
    pub id: String,
}

impl Actor {
    pub fn caller(caller: &Identity) -> Self {
        let role = match caller.role {
            Role::Customer => ActorRole::Customer,
            Role::Admin => ActorRole::Admin,
        };
        Self { role, id: caller.customer.as_str().to_owned() }
    }

    pub fn payment() -> Self {
        Self { role: ActorRole::Payment, id: "PAYMENT_SERVICE".to_owned() }
    }

    pub fn system() -> Self {
        Self { role: ActorRole::System, id: "ORDER_SERVICE".to_owned() }
    }
}

/// Leaves out the id, which may be an e-mail address.
impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Actor({})", self.role.into_str())
    }
}
