//! Where Incus 6 and LXD 5.0 differ.

/// One of the two engines. They share nearly all of the API; this type holds the differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Incus 6 and later.
    Incus,
    /// LXD 5.0 (the last one Debian packages).
    Lxd,
}

impl Dialect {
    /// Directory of the engine's state.
    pub fn directory(self) -> &'static str {
        match self {
            Self::Incus => "/var/lib/incus",
            Self::Lxd => "/var/lib/lxd",
        }
    }
    /// Paths where the engine's unix socket may be, most likely first. The LXD snap keeps it in the snap's directory.
    pub fn sockets(self) -> &'static [&'static str] {
        match self {
            Self::Incus => &["/var/lib/incus/unix.socket", "/run/incus/unix.socket"],
            Self::Lxd => &["/var/snap/lxd/common/lxd/unix.socket", "/var/lib/lxd/unix.socket"],
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
        f.pad(match self {
            Self::Incus => "Incus",
            Self::Lxd => "LXD",
        })
    }
}
