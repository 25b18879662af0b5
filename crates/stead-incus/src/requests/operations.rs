//! Operations: background work of the server.

use super::Scope;
use crate::{Feature, Request, request::encode};
use std::time::Duration;

/// Operations of every member, by status: `{"running": […], "success": […]}`. Ended ones are listed for five seconds.
pub fn list(scope: Scope<'_>) -> Request {
    scope.of(Request::get("/1.0/operations?recursion=1"), Feature::OperationsAllProjects)
}
/// Waits at the server until the operation has ended or `timeout` is over. The client's time limit is 5 s longer, so that
/// the server's answer comes first.
pub fn wait(path: &str, timeout: Duration) -> Request {
    let seconds = timeout.as_secs().max(1);
    Request::get(format!("{}/wait", bare(path)))
        .query("timeout", &seconds.to_string())
        .within(Duration::from_secs(seconds + 5))
}
/// Current state of an operation.
pub fn get(path: &str) -> Request {
    Request::get(bare(path))
}
/// Cancels an operation, if it can be cancelled.
pub fn cancel(path: &str) -> Request {
    Request::delete(bare(path))
}
/// Connects to one of an operation's websockets.
pub fn websocket(path: &str, secret: &str) -> Request {
    Request::get(format!("{}/websocket", bare(path))).query("secret", secret)
}
/// The path of an operation from its UUID.
pub fn path(id: &str) -> String {
    format!("/1.0/operations/{}", encode(id))
}

/// A path without its query: servers sometimes add one (`?project=p`), which is not needed to find the operation.
fn bare(path: &str) -> &str {
    path.split_once('?').map_or(path, |(p, _)| p)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::shown;

    #[test]
    fn requests() {
        let w = wait("/1.0/operations/u?project=p", Duration::from_secs(30));
        assert_eq!(shown(&w), "GET /1.0/operations/u/wait?timeout=30");
        assert_eq!(w.timeout(), Duration::from_secs(35));
        assert_eq!(shown(&cancel("/1.0/operations/u")), "DELETE /1.0/operations/u");
        assert_eq!(shown(&websocket("/1.0/operations/u", "s")), "GET /1.0/operations/u/websocket?secret=s");
        assert_eq!(shown(&list(Scope::Project("p"))), "GET /1.0/operations?recursion=1&project=p");
    }
}
