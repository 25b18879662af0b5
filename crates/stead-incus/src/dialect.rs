//! Where the API of Incus 6 and that of LXD 5.0 differ. What is known of the engines beside their API is in
//! [`EngineFacts`].

use stead_model::{EngineFacts, EngineKind};

/// One of the two engines. They share nearly all of the API; this type holds the differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Incus 6 and later.
    Incus,
    /// LXD 5.0 (the last one Debian packages).
    Lxd,
}

impl Dialect {
    /// How an engine of this kind is spoken to; `None` for one with another API, or no engine.
    pub fn of(kind: EngineKind) -> Option<Self> {
        match kind {
            EngineKind::None => None,
            EngineKind::Incus => Some(Self::Incus),
            EngineKind::Lxd => Some(Self::Lxd),
        }
    }
    /// The row of the engine that speaks it: where it keeps its state, its sockets.
    pub fn facts(self) -> &'static EngineFacts {
        match self {
            Self::Incus => &EngineFacts::INCUS,
            Self::Lxd => &EngineFacts::LXD,
        }
    }
    /// Value of `protocol` in a request to fetch an image from a server of this kind.
    pub fn image_protocol(self) -> &'static str {
        match self {
            Self::Incus => "incus",
            Self::Lxd => "lxd",
        }
    }
    /// Field of `PUT /1.0/cluster` that carries the join token. LXD 5.0 has no such field and accepts the token as the
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
    /// Name of one of the engine's own headers.
    pub(crate) fn header(self, header: Header) -> &'static str {
        match (self, header) {
            (Self::Incus, Header::Uid) => "X-Incus-uid",
            (Self::Incus, Header::Gid) => "X-Incus-gid",
            (Self::Incus, Header::Mode) => "X-Incus-mode",
            (Self::Incus, Header::Kind) => "X-Incus-type",
            (Self::Incus, Header::Write) => "X-Incus-write",
            (Self::Incus, Header::FileName) => "X-Incus-filename",
            (Self::Incus, Header::Properties) => "X-Incus-properties",
            (Self::Lxd, Header::Uid) => "X-LXD-uid",
            (Self::Lxd, Header::Gid) => "X-LXD-gid",
            (Self::Lxd, Header::Mode) => "X-LXD-mode",
            (Self::Lxd, Header::Kind) => "X-LXD-type",
            (Self::Lxd, Header::Write) => "X-LXD-write",
            (Self::Lxd, Header::FileName) => "X-LXD-filename",
            (Self::Lxd, Header::Properties) => "X-LXD-properties",
        }
    }
}

/// HTTP headers whose names differ between the engines; see [`Dialect::header`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum Header {
    /// User id of a file's owner.
    Uid,
    /// Group id of a file.
    Gid,
    /// Permissions of a file.
    Mode,
    /// Kind of a file: `file`, `directory`, `symlink`.
    Kind,
    /// How a file is written: `overwrite`, `append`.
    Write,
    /// File name of an image.
    FileName,
    /// Properties of an image, as a query string.
    Properties,
}

impl std::fmt::Display for Dialect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.facts().title)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dialect_and_its_row_name_each_other() {
        for facts in EngineFacts::all() {
            if let Some(dialect) = Dialect::of(facts.kind) {
                assert_eq!(dialect.facts(), facts);
            }
        }
        for dialect in [Dialect::Incus, Dialect::Lxd] {
            assert_eq!(Dialect::of(dialect.facts().kind), Some(dialect));
        }
    }
}
