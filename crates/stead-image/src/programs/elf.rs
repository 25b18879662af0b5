//! Which processor and which interpreter a program needs. Pure over its bytes.

/// What a file is to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// ELF, for this processor.
    Elf {
        /// The architecture as Rust names it; `None` for one that Stead does not run on.
        architecture: Option<&'static str>,
        /// The loader that the kernel starts; `None` for a static program.
        interpreter: Option<String>,
    },
    /// A script and its interpreter.
    Script(String),
    /// Not a program.
    Other,
}

impl Program {
    /// The path that must be there for it to run.
    pub fn interpreter(&self) -> Option<&str> {
        match self {
            Self::Elf { interpreter, .. } => interpreter.as_deref(),
            Self::Script(interpreter) => Some(interpreter),
            Self::Other => None,
        }
    }
}

/// The kernel reads no more of a script's first line.
const MAX_FIRST_LINE_BYTES: usize = 255;
/// Paths are no longer on Linux.
const MAX_PATH_BYTES: usize = 4095;

const PT_INTERP: u64 = 3;
const EM_X86_64: u64 = 62;
const EM_AARCH64: u64 = 183;

/// Looks at a program. 64-bit little-endian ELF is understood.
pub fn program(bytes: &[u8]) -> Program {
    if let Some(rest) = bytes.strip_prefix(b"#!") {
        let line = &rest[..rest.len().min(MAX_FIRST_LINE_BYTES)];
        let line = line.split(|b| *b == b'\n').next().unwrap_or_default();
        return match String::from_utf8_lossy(line).split_whitespace().next() {
            Some(interpreter) if interpreter.starts_with('/') => Program::Script(interpreter.to_owned()),
            _ => Program::Other,
        };
    }
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return Program::Other;
    }
    let number = |at: usize, len: usize| {
        let end = at.checked_add(len)?;
        Some(bytes.get(at..end)?.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b)))
    };
    let architecture = match number(0x12, 2) {
        Some(EM_X86_64) => Some("x86_64"),
        Some(EM_AARCH64) => Some("aarch64"),
        _ => None,
    };
    let interpreter = || {
        let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
        let headers = (0..count).filter_map(|i| usize::try_from(table.checked_add(size * i)?).ok());
        let header = headers.into_iter().find(|at| number(*at, 4) == Some(PT_INTERP))?;
        let from = usize::try_from(number(header.checked_add(8)?, 8)?).ok()?;
        let len = usize::try_from(number(header.checked_add(32)?, 8)?).ok()?;
        let text = bytes.get(from..from.checked_add(len.min(MAX_PATH_BYTES))?)?;
        let text = text.split(|b| *b == 0).next().unwrap_or_default();
        Some(String::from_utf8_lossy(text).into_owned())
    };
    Program::Elf { architecture, interpreter: interpreter() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn knows_scripts_static_and_dynamic_programs() {
        assert_eq!(program(b"#! /bin/sh -e\nx"), Program::Script("/bin/sh".into()));
        assert_eq!(program(b"#!sh"), Program::Other);
        assert_eq!(program(b"text"), Program::Other);
        // This test's own program is static, as all of Stead's are; the system's shell is not.
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let Program::Elf { architecture, .. } = program(&own) else { panic!("not ELF") };
        assert_eq!(architecture, Some(std::env::consts::ARCH));
        let shell = std::fs::read("/bin/sh").unwrap();
        assert!(program(&shell).interpreter().unwrap().starts_with("/lib"), "{:?}", program(&shell));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), elf in any::<bool>()) {
            if elf {
                bytes.splice(..0, *b"\x7fELF\x02\x01");
            }
            let _ = program(&bytes).interpreter();
        }
    }
}
