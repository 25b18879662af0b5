//! Background work of the server.

use crate::Request;
use std::time::Duration;

/// Answers when the operation has ended, or after `timeout` with it still running. The connection is given 5 s more
/// than the server, so that the server's answer wins.
pub fn wait(path: &str, timeout: Duration) -> Request {
    let seconds = timeout.as_secs().max(1);
    Request::get(format!("{}/wait", bare(path)))
        .query("timeout", &seconds.to_string())
        .within(Duration::from_secs(seconds + 5))
}
/// How it is.
pub fn get(path: &str) -> Request {
    Request::get(bare(path))
}
/// Cancels it, if it can be.
pub fn cancel(path: &str) -> Request {
    Request::delete(bare(path))
}

/// Operations are named with a query at times (`?project=p`), which does not matter to find them.
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
        assert_eq!(w.timeout, Duration::from_secs(35));
        assert_eq!(shown(&cancel("/1.0/operations/u")), "DELETE /1.0/operations/u");
    }
}
