//! Whether a name server answers: one question by UDP.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    time::Duration,
};

/// A lost or unanswered question is asked again after this.
const ANSWER_PATIENCE: Duration = Duration::from_millis(200);
/// Any question will do; this one the server answers without asking others.
const QUESTION_ID: [u8; 2] = [0x57, 0xEA];

/// Asks the server at `address` for its own existence; any well-formed answer will do.
pub(crate) fn answers(address: IpAddr) -> io::Result<()> {
    let local: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((local, 0))?;
    socket.set_read_timeout(Some(ANSWER_PATIENCE))?;
    socket.connect((address, 53))?;
    socket.send(&question("localhost"))?;
    let mut answer = [0; 512];
    let n = socket.recv(&mut answer)?;
    let is_answer = n >= 12 && answer[..2] == QUESTION_ID && answer[2] & 0x80 != 0;
    is_answer.then_some(()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A DNS question for the IPv4 address of a one-label name.
fn question(name: &str) -> Vec<u8> {
    let mut q = QUESTION_ID.to_vec();
    // Flags: nothing; one question, no records.
    q.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    q.push(name.len() as u8);
    q.extend(name.bytes());
    // End of the name; type A; class IN.
    q.extend([0, 0, 1, 0, 1]);
    q
}
