//! Where Incus 6 and LXD 5.0 differ.

/// Which of the two engines answers. They share nearly all of the API; what differs is asked of this type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Incus 6 and later.
    Incus,
    /// LXD 5.0 (the last one Debian packages).
    Lxd,
}

impl Dialect {
    /// Where the engine keeps its state.
    pub fn directory(self) -> &'static str {
        match self {
            Self::Incus => "/var/lib/incus",
            Self::Lxd => "/var/lib/lxd",
        }
    }
    /// Field of `PUT /1.0/cluster` that carries the join token. LXD 5.0 has none of its own and takes it for the
    /// trust password.
    pub fn join_token_field(self) -> &'static str {
        match self {
            Self::Incus => "cluster_token",
            Self::Lxd => "cluster_password",
        }
    }
    /// Field of `POST /1.0/certificates` that carries a trust token.
    pub fn trust_token_field(self) -> &'static str {
        match self {
            Self::Incus => "trust_token",
            Self::Lxd => "password",
        }
    }
}

impl std::fmt::Display for Dialect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Incus => "Incus",
            Self::Lxd => "LXD",
        })
    }
}
