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
    /// Where the engine's unix socket may be, most likely first. LXD as a snap keeps it in the snap's own directory.
    pub fn sockets(self) -> &'static [&'static str] {
        match self {
            Self::Incus => &["/var/lib/incus/unix.socket", "/run/incus/unix.socket"],
            Self::Lxd => &["/var/snap/lxd/common/lxd/unix.socket", "/var/lib/lxd/unix.socket"],
        }
    }
    /// What a server of this kind is called by another that fetches an image from it.
    pub fn image_protocol(self) -> &'static str {
        match self {
            Self::Incus => "incus",
            Self::Lxd => "lxd",
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

/// For [`Dialect::header`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum Header {
    /// Owner of a file.
    Uid,
    /// Its group.
    Gid,
    /// Its permissions.
    Mode,
    /// `file`, `directory`, `symlink`.
    Kind,
    /// `overwrite`, `append`.
    Write,
    /// Name of an image's file.
    FileName,
    /// Properties of an image, as a query string.
    Properties,
}

impl std::fmt::Display for Dialect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Incus => "Incus",
            Self::Lxd => "LXD",
        })
    }
}
