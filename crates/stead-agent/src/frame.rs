//! The frames of `exec` (see [`ExecRequest`]): a pure codec, incremental and bounded.
//!
//! A frame is one byte for its kind, four bytes for its length (big-endian), and the payload. Which side may send which
//! kind is checked by both ends, not here.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use stead_model::agent::{ExecExit, ExecRequest, Size};

/// Longest payload, in bytes. Bounds the memory that a peer can make us use; larger data is sent as several frames.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Bytes before the payload: one for the kind, four for the length.
pub const HEADER: usize = 5;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// What to run (client, first).
    Request(ExecRequest),
    /// For the command's standard input (client).
    Stdin(Bytes),
    /// From its standard output (node).
    Stdout(Bytes),
    /// From its standard error (node).
    Stderr(Bytes),
    /// Standard input ends (client).
    StdinClosed,
    /// New size of the terminal (client).
    Resize(Size),
    /// Send a signal (client).
    Signal(u8),
    /// How the command ended (node, last).
    Exit(ExecExit),
}

/// A frame was refused.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length in the header, or of a message to be sent, is above [`MAX_PAYLOAD`].
    #[error("exec frame of {length} bytes is longer than {MAX_PAYLOAD}")]
    TooLong {
        /// Length in bytes.
        length: usize,
    },
    /// No such kind.
    #[error("exec frame of unknown kind {0}")]
    Kind(u8),
    /// The payload does not fit the kind.
    #[error("exec frame {what} is malformed")]
    Payload {
        /// Name of the kind.
        what: &'static str,
        /// What the JSON parser says, when it was JSON.
        #[source]
        source: Option<serde_json::Error>,
    },
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Self::Request(_) => 0,
            Self::Stdin(_) => 1,
            Self::Stdout(_) => 2,
            Self::Stderr(_) => 3,
            Self::StdinClosed => 4,
            Self::Resize(_) => 5,
            Self::Signal(_) => 6,
            Self::Exit(_) => 7,
        }
    }
}

/// Takes one frame off the front of `buffer`; `None`, with the buffer unchanged, while the frame is incomplete.
///
/// # Errors
/// The peer does not follow the protocol; the stream cannot be used any more.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some((header, _)) = buffer.split_first_chunk::<HEADER>() else { return Ok(None) };
    let [kind, length @ ..] = *header;
    let length = u32::from_be_bytes(length) as usize;
    if kind > 7 {
        return Err(FrameError::Kind(kind));
    }
    if length > MAX_PAYLOAD {
        return Err(FrameError::TooLong { length });
    }
    if buffer.len() < HEADER + length {
        buffer.reserve(HEADER + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(HEADER);
    let payload = buffer.split_to(length).freeze();
    let frame = match kind {
        0 => Frame::Request(json("request", &payload)?),
        1 => Frame::Stdin(payload),
        2 => Frame::Stdout(payload),
        3 => Frame::Stderr(payload),
        4 if payload.is_empty() => Frame::StdinClosed,
        4 => return Err(FrameError::Payload { what: "stdin closed", source: None }),
        5 => Frame::Resize(json("resize", &payload)?),
        6 => match *payload {
            [number] => Frame::Signal(number),
            _ => return Err(FrameError::Payload { what: "signal", source: None }),
        },
        _ => Frame::Exit(json("exit", &payload)?),
    };
    Ok(Some(frame))
}

/// Appends a frame to `out`; data longer than [`MAX_PAYLOAD`] becomes several frames.
///
/// # Errors
/// [`FrameError::TooLong`] for a message (request, exit) that does not fit.
pub fn encode(frame: &Frame, out: &mut BytesMut) -> Result<(), FrameError> {
    match frame {
        Frame::Stdin(data) | Frame::Stdout(data) | Frame::Stderr(data) => {
            for chunk in data.chunks(MAX_PAYLOAD) {
                put(frame.kind(), chunk, out)?;
            }
            Ok(())
        }
        Frame::StdinClosed => put(frame.kind(), &[], out),
        Frame::Signal(number) => put(frame.kind(), &[*number], out),
        Frame::Request(request) => put(frame.kind(), &to_json("request", request)?, out),
        Frame::Resize(size) => put(frame.kind(), &to_json("resize", size)?, out),
        Frame::Exit(exit) => put(frame.kind(), &to_json("exit", exit)?, out),
    }
}

fn put(kind: u8, payload: &[u8], out: &mut BytesMut) -> Result<(), FrameError> {
    if payload.len() > MAX_PAYLOAD {
        return Err(FrameError::TooLong { length: payload.len() });
    }
    out.reserve(HEADER + payload.len());
    out.put_u8(kind);
    out.put_u32(payload.len() as u32);
    out.put_slice(payload);
    Ok(())
}

fn json<T: serde::de::DeserializeOwned>(what: &'static str, payload: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(payload).map_err(|e| FrameError::Payload { what, source: Some(e) })
}

fn to_json<T: serde::Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, FrameError> {
    serde_json::to_vec(value).map_err(|e| FrameError::Payload { what, source: Some(e) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn any_frame() -> impl Strategy<Value = Frame> {
        let data = || vec(any::<u8>(), 1..2000).prop_map(Bytes::from);
        let size = || (any::<u16>(), any::<u16>()).prop_map(|(rows, columns)| Size { rows, columns });
        prop_oneof![
            (vec(".{0,20}", 0..5), proptest::option::of(size())).prop_map(|(command, tty)| {
                Frame::Request(ExecRequest { command, environment: Default::default(), cwd: None, tty })
            }),
            data().prop_map(Frame::Stdin),
            data().prop_map(Frame::Stdout),
            data().prop_map(Frame::Stderr),
            Just(Frame::StdinClosed),
            size().prop_map(Frame::Resize),
            any::<u8>().prop_map(Frame::Signal),
            (any::<i32>(), proptest::option::of(".{0,20}"))
                .prop_map(|(code, error)| Frame::Exit(ExecExit { code, error })),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(frames in vec(any_frame(), 0..8), cut in 1usize..50) {
            let mut wire = BytesMut::new();
            for f in &frames {
                encode(f, &mut wire).unwrap();
            }
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(f) = decode(&mut buffer).unwrap() {
                    got.push(f);
                }
            }
            prop_assert_eq!(got, frames);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn any_bytes_are_answered_and_consumed(bytes in vec(any::<u8>(), 0..300)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            loop {
                let before = buffer.len();
                match decode(&mut buffer) {
                    Ok(Some(_)) => prop_assert!(buffer.len() < before),
                    Ok(None) => { prop_assert_eq!(buffer.len(), before); break }
                    Err(_) => break,
                }
            }
        }
    }

    #[test]
    fn bounds_hold_before_the_payload_is_there() {
        let mut b = BytesMut::from(&[1, 0, 1, 0, 1][..]);
        assert!(matches!(decode(&mut b), Err(FrameError::TooLong { length: 65537 })));
        let mut b = BytesMut::from(&[8, 0, 0, 0, 0][..]);
        assert!(matches!(decode(&mut b), Err(FrameError::Kind(8))));
        let mut b = BytesMut::from(&[6, 0, 0, 0, 2, 1, 1][..]);
        assert!(matches!(decode(&mut b), Err(FrameError::Payload { what: "signal", .. })));
    }

    #[test]
    fn long_data_is_split_into_frames_and_long_messages_are_refused() {
        let data = Bytes::from(vec![7; MAX_PAYLOAD * 2 + 1]);
        let mut wire = BytesMut::new();
        encode(&Frame::Stdin(data.clone()), &mut wire).unwrap();
        let mut total = 0;
        while let Some(Frame::Stdin(part)) = decode(&mut wire).unwrap() {
            assert!(part.len() <= MAX_PAYLOAD);
            total += part.len();
        }
        assert_eq!(total, data.len());
        let request = ExecRequest {
            command: vec!["x".repeat(MAX_PAYLOAD)],
            environment: Default::default(),
            cwd: None,
            tty: None,
        };
        assert!(matches!(encode(&Frame::Request(request), &mut wire), Err(FrameError::TooLong { .. })));
        assert!(wire.is_empty());
    }
}
