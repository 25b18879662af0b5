//! Every request Stead makes, as functions from what is wanted to a [`Request`](crate::Request). Pure: tests assert
//! method, path and body.

pub mod certificates;
pub mod cluster;
pub mod images;
pub mod instances;
pub mod networks;
pub mod operations;
pub mod profiles;
pub mod projects;
pub mod server;
pub mod storage;

/// Asserts on a request in one line.
#[cfg(test)]
pub(crate) fn shown(r: &crate::Request) -> String {
    match &r.body {
        crate::Body::Json(v) => format!("{r} {v}"),
        crate::Body::None => r.to_string(),
        _ => format!("{r} (bytes)"),
    }
}
