//! Who is calling, and what they may see (invariant 7).
//!
//! The store hands out orders only inside [`Owned`], and the only way in is [`Owned::for_viewer`]. A handler
//! that forgets the question has nothing to answer with.

use strum::{EnumString, IntoStaticStr};
use thiserror::Error;

use super::{Actor, CustomerId};

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(serialize_all = "UPPERCASE")]
pub enum Role {
    /// May place orders and see their own.
    Customer,
    /// May also see all orders and change their status.
    Admin,
}

impl Role {
    /// The name on the wire and in the column.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A caller, as the gateway vouches for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The caller's own customer id.
    pub customer: CustomerId,
    /// What the caller may do.
    pub role: Role,
}

impl Identity {
    /// The proof that the caller is an admin.
    pub fn admin(&self) -> Result<Admin<'_>, Forbidden> {
        match self.role {
            Role::Admin => Ok(Admin(self)),
            Role::Customer => Err(Forbidden("only an ADMIN may do this")),
        }
    }
}

/// A caller who is an admin; use cases for admins ask for one of these.
#[derive(Clone, Copy, Debug)]
pub struct Admin<'a>(&'a Identity);

impl Admin<'_> {
    /// The admin as the one who did something.
    pub fn actor(self) -> Actor {
        Actor::caller(self.0)
    }
}

/// The caller may not do this, or not see this.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Forbidden(pub &'static str);

/// Something that belongs to a customer and that not everybody may see.
#[derive(Clone, Debug)]
pub struct Owned<T> {
    owner: CustomerId,
    thing: T,
}

impl<T> Owned<T> {
    /// Puts `thing` where only its owner and admins get at it.
    pub fn new(owner: CustomerId, thing: T) -> Self {
        Self { owner, thing }
    }

    /// Hands the thing to the service's own work, which shows it to nobody but those who asked for that work.
    pub(crate) fn for_service(self) -> T {
        self.thing
    }

    /// Hands the thing to its owner and to admins, and to nobody else.
    pub fn for_viewer(self, viewer: &Identity) -> Result<T, Forbidden> {
        if viewer.role == Role::Admin || viewer.customer == self.owner {
            Ok(self.thing)
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
    fn only_the_owner_and_admins_get_at_what_is_owned() {
        let owned = Owned::new(CustomerId::parse("a@example.com").unwrap(), 7);
        assert_eq!(owned.clone().for_viewer(&caller("a@example.com", Role::Customer)), Ok(7));
        assert_eq!(owned.clone().for_viewer(&caller("root@example.com", Role::Admin)), Ok(7));
        for other in ["b@example.com", "A@example.com", "a@example.co"] {
            assert!(owned.clone().for_viewer(&caller(other, Role::Customer)).is_err(), "{other}");
        }
    }

    #[test]
    fn roles_are_exact_words() {
        assert_eq!("ADMIN".parse(), Ok(Role::Admin));
        for bad in ["admin", "ROLE_ADMIN", "ADMIN,CUSTOMER", " ADMIN", ""] {
            assert!(bad.parse::<Role>().is_err(), "{bad}");
        }
    }
}
