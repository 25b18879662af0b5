//! A running command, as the client sees it; and frames over any byte stream, which the node uses too.

use crate::frame::{self, Frame, FrameError};
use bytes::{Bytes, BytesMut};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::io;
use stead_model::agent::{ExecExit, Size};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

type Stream = TokioIo<Upgraded>;

/// What a command says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// On its standard output (with a terminal: everything).
    Stdout(Bytes),
    /// On its standard error.
    Stderr(Bytes),
    /// It ended, and all its output has been told. Nothing follows.
    Exit(ExecExit),
}

/// A command running on a node. Dropping both halves has the node kill the command's process group.
#[derive(Debug)]
pub struct ExecSession {
    input: ExecInput,
    output: ExecOutput,
}

/// The half that speaks to the command. Its methods are not cancel-safe: a frame sent in part breaks the session.
#[derive(Debug)]
pub struct ExecInput {
    stream: WriteHalf<Stream>,
    buffer: BytesMut,
}

/// The half that hears the command.
#[derive(Debug)]
pub struct ExecOutput {
    stream: ReadHalf<Stream>,
    buffer: BytesMut,
    ended: bool,
}

impl ExecSession {
    pub(crate) fn new(stream: Stream) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self {
            input: ExecInput { stream: write, buffer: BytesMut::new() },
            output: ExecOutput { stream: read, buffer: BytesMut::new(), ended: false },
        }
    }
    /// Two halves, for two tasks: a command that is not heard stops reading too.
    pub fn split(self) -> (ExecInput, ExecOutput) {
        (self.input, self.output)
    }
    /// The half that speaks to the command.
    pub fn input(&mut self) -> &mut ExecInput {
        &mut self.input
    }
    /// The half that hears the command.
    pub fn output(&mut self) -> &mut ExecOutput {
        &mut self.output
    }
}

impl ExecInput {
    pub(crate) async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        write_frame(&mut self.stream, &mut self.buffer, frame).await
    }
    /// Gives the command standard input. Waits while it does not read.
    ///
    /// # Errors
    /// The connection is gone; [`ExecOutput::next`] may still say why.
    pub async fn stdin(&mut self, data: impl Into<Bytes>) -> io::Result<()> {
        self.send(&Frame::Stdin(data.into())).await
    }
    /// Ends the command's standard input (with a terminal: types ^D).
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn close_stdin(&mut self) -> io::Result<()> {
        self.send(&Frame::StdinClosed).await
    }
    /// The terminal has another size.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn resize(&mut self, size: Size) -> io::Result<()> {
        self.send(&Frame::Resize(size)).await
    }
    /// Signals the command's process group (with a terminal: the foreground one). It comes after all stdin sent
    /// before.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn signal(&mut self, number: u8) -> io::Result<()> {
        self.send(&Frame::Signal(number)).await
    }
}

impl ExecOutput {
    /// What the command says next; `None` after [`Event::Exit`]. Cancel-safe.
    ///
    /// # Errors
    /// The connection broke before the command ended, or the node does not speak the protocol.
    pub async fn next(&mut self) -> io::Result<Option<Event>> {
        if self.ended {
            return Ok(None);
        }
        match read_frame(&mut self.stream, &mut self.buffer).await? {
            Some(Frame::Stdout(data)) => Ok(Some(Event::Stdout(data))),
            Some(Frame::Stderr(data)) => Ok(Some(Event::Stderr(data))),
            Some(Frame::Exit(exit)) => {
                self.ended = true;
                Ok(Some(Event::Exit(exit)))
            }
            Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "frame of a kind only clients send")),
            None => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the node closed before the command's end"))
            }
        }
    }
}

/// Reads one frame; `None` at a clean end between frames. Cancel-safe: what was read stays in `buffer`.
///
/// # Errors
/// Reading fails, ends inside a frame, or brings no frame.
pub async fn read_frame<R: AsyncRead + Unpin>(
    reader: &mut R,
    buffer: &mut BytesMut,
) -> io::Result<Option<Frame>> {
    loop {
        if let Some(frame) = frame::decode(buffer).map_err(invalid)? {
            return Ok(Some(frame));
        }
        buffer.reserve(READ_AHEAD);
        if reader.read_buf(buffer).await? == 0 {
            return if buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
}

/// A TLS record holds 16 KiB at most, so that reading more at once gains nothing.
const READ_AHEAD: usize = 16 * 1024;

/// Writes one frame (data longer than a frame as several) and flushes. `scratch` is reused between calls.
///
/// # Errors
/// Writing fails, or a message is longer than a frame.
pub async fn write_frame<W: AsyncWrite + Unpin>(
    writer: &mut W,
    scratch: &mut BytesMut,
    frame: &Frame,
) -> io::Result<()> {
    scratch.clear();
    frame::encode(frame, scratch).map_err(invalid)?;
    writer.write_all(scratch).await?;
    writer.flush().await
}

fn invalid(error: FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
