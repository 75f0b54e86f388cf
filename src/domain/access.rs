//! Identity and access control (invariant 7).
//!
//! The store returns orders only as [`Owned`], and only [`Owned::for_viewer`] opens it. So a handler cannot forget the
//! check.

use strum::{EnumString, IntoStaticStr};
use thiserror::Error;

use super::{Actor, CustomerId};

/// The role of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(serialize_all = "UPPERCASE", const_into_str)]
pub enum Role {
    /// May place orders and see their own.
    Customer,
    /// May also see all orders and change their statuses.
    Admin,
}

/// A caller, as authenticated by the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub customer: CustomerId,
    pub role: Role,
}

impl Identity {
    /// Proves that the caller is an admin.
    pub fn admin(&self) -> Result<Admin<'_>, Forbidden> {
        match self.role {
            Role::Admin => Ok(Admin(self)),
            Role::Customer => Err(Forbidden("only an ADMIN may do this")),
        }
    }
}

/// The proof that a caller is an admin. Use cases for admins require it.
#[derive(Clone, Copy, Debug)]
pub struct Admin<'a>(&'a Identity);

impl Admin<'_> {
    /// The admin as the actor of a change.
    pub fn actor(self) -> Actor {
        Actor::caller(self.0)
    }
}

/// The caller may not do or see this.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Forbidden(pub &'static str);

/// A value that only its owner and admins may see.
#[derive(Clone, Debug)]
pub struct Owned<T> {
    owner: CustomerId,
    value: T,
}

impl<T> Owned<T> {
    /// Protects a value.
    pub fn new(owner: CustomerId, value: T) -> Self {
        Self { owner, value }
    }

    /// Opens the value for an admin's request or for background work, which was authorised before.
    pub(crate) fn for_service(self) -> T {
        self.value
    }

    /// Opens the value for its owner or an admin.
    pub fn for_viewer(self, viewer: &Identity) -> Result<T, Forbidden> {
        if viewer.role == Role::Admin || viewer.customer == self.owner {
            Ok(self.value)
        } else {
            Err(Forbidden("this order belongs to another customer"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(email: &str, role: Role) -> Identity {
        Identity { customer: CustomerId::parse(email).unwrap(), role }
    }

    #[test]
    fn only_the_owner_and_admins_may_see_an_owned_value() {
        let owned = Owned::new(CustomerId::parse("a@example.com").unwrap(), 7);
        assert_eq!(owned.clone().for_viewer(&caller("a@example.com", Role::Customer)), Ok(7));
        assert_eq!(owned.clone().for_viewer(&caller("root@example.com", Role::Admin)), Ok(7));
        for other in ["b@example.com", "A@example.com", "a@example.co"] {
            assert!(owned.clone().for_viewer(&caller(other, Role::Customer)).is_err(), "{other}");
        }
    }

    #[test]
    fn role_names_are_matched_exactly() {
        assert_eq!("ADMIN".parse(), Ok(Role::Admin));
        for bad in ["admin", "ROLE_ADMIN", "ADMIN,CUSTOMER", " ADMIN", ""] {
            assert!(bad.parse::<Role>().is_err(), "{bad}");
        }
    }
}
