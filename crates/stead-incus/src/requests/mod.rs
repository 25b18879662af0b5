//! Every request Stead makes, as pure functions that return a [`Request`](crate::Request). Tests assert the method, path,
//! body and needed features of a request.

pub mod certificates;
pub mod cluster;
pub mod exec;
pub mod files;
pub mod images;
pub mod instances;
pub mod migration;
pub mod networks;
pub mod operations;
pub mod profiles;
pub mod projects;
pub mod server;
pub mod storage;
pub mod warnings;

use crate::{Feature, Request};

/// Projects that a list covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// One project.
    Project(&'a str),
    /// All projects the client may see.
    AllProjects,
}

impl Scope<'_> {
    fn of(self, request: Request, all: Feature) -> Request {
        match self {
            Self::Project(project) => request.query("project", project),
            Self::AllProjects => request.query("all-projects", "true").needs(all),
        }
    }
}

/// A request on one line, for assertions.
#[cfg(test)]
pub(crate) fn shown(r: &Request) -> String {
    match r.body() {
        crate::Body::Json(v) => format!("{r} {v}"),
        crate::Body::None => r.to_string(),
        _ => format!("{r} (bytes)"),
    }
}
