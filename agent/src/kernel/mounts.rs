//! What is mounted, from `/proc/self/mounts`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Where it is.
    pub(super) path: PathBuf,
    /// Its type, as `cgroup2`.
    pub(super) kind: String,
}

/// The file under the root of `/proc`.
pub(super) fn file(proc_root: &Path) -> PathBuf {
    proc_root.join("self/mounts")
}

/// Reads them all, in the order in which they were mounted.
pub(super) fn read(proc_root: &Path) -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read_to_string(file(proc_root))?))
}

fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ').skip(1);
    let (path, kind) = (fields.next()?, fields.next()?);
    Some(Mount { path: PathBuf::from(unescape(path)), kind: kind.to_owned() })
}

/// The kernel writes blanks in paths as three octal digits behind a backslash.
fn unescape(path: &str) -> String {
    let mut pieces = path.split('\\');
    let mut all = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        match piece.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                all.push(char::from(byte));
                all.push_str(&piece[3..]);
            }
            None => {
                all.push('\\');
                all.push_str(piece);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_paths_and_types() {
        let text = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\nbroken\n";
        let found = parse(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1], Mount { path: PathBuf::from("/sys/fs/cgroup/unified"), kind: "cgroup2".to_owned() });
    }

    #[test]
    fn paths_with_blanks_and_backslashes() {
        assert_eq!(unescape(r"/a\040b\011c\134d"), "/a b\tc\\d");
        assert_eq!(unescape(r"/a\x"), r"/a\x");
        assert_eq!(unescape(r"/a\04"), r"/a\04");
    }
}
