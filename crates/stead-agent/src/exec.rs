//! A running command as the client sees it, and frames over any byte stream, for the client and the node.

use crate::frame::{self, Frame, FrameError};
use bytes::{Bytes, BytesMut};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::io;
use stead_model::agent::{ExecExit, Size};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

type Stream = TokioIo<Upgraded>;

/// Output or end of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Data from its standard output; with a terminal, all output.
    Stdout(Bytes),
    /// Data from its standard error.
    Stderr(Bytes),
    /// It ended, after all its output. No event follows.
    Exit(ExecExit),
}

/// A command running on a node. When both halves are dropped, the node kills the command's process group.
#[derive(Debug)]
pub struct ExecSession {
    input: ExecInput,
    output: ExecOutput,
}

/// The half that sends to the command. Its methods are not cancel-safe: a frame sent in part breaks the session.
#[derive(Debug)]
pub struct ExecInput {
    stream: WriteHalf<Stream>,
    buffer: BytesMut,
}

/// The half that receives from the command.
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
    /// Splits into two halves for two tasks. A command whose output is not read stops reading its input.
    pub fn split(self) -> (ExecInput, ExecOutput) {
        (self.input, self.output)
    }
    /// The half that sends to the command.
    pub fn input(&mut self) -> &mut ExecInput {
        &mut self.input
    }
    /// The half that receives from the command.
    pub fn output(&mut self) -> &mut ExecOutput {
        &mut self.output
    }
}

impl ExecInput {
    pub(crate) async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        write_frame(&mut self.stream, &mut self.buffer, frame).await
    }
    /// Sends data to the command's standard input. Waits while the command does not read.
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
    /// Changes the size of the terminal.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn resize(&mut self, size: Size) -> io::Result<()> {
        self.send(&Frame::Resize(size)).await
    }
    /// Signals the command's process group; with a terminal, the foreground one. The signal follows all input sent
    /// before.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn signal(&mut self, number: u8) -> io::Result<()> {
        self.send(&Frame::Signal(number)).await
    }
}

impl ExecOutput {
    /// The next event; `None` after [`Event::Exit`]. Cancel-safe.
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
            Some(_) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the node sent a frame that only clients may send",
            )),
            None => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the node closed the connection before the command ended",
            )),
        }
    }
}

/// Reads one frame; `None` when the stream ends between frames. Cancel-safe: data already read stays in `buffer`.
///
/// # Errors
/// Reading fails, the stream ends inside a frame, or its bytes are not a frame.
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

/// A TLS record holds 16 KiB at most, so reading more at once gains nothing.
const READ_AHEAD: usize = 16 * 1024;

/// Writes one frame, or several when the data is longer than a frame, and flushes. `scratch` is reused between calls.
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
