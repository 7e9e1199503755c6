//! Memory of this process, and how much of it there may be.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::unistd::{SysconfVar, sysconf};

/// Limits from here on are none: version 1 of cgroups writes the largest number of pages where there is no limit.
const UNLIMITED: u64 = 1 << 60;

/// Bytes of memory that this process has in use; 0 if the kernel does not say.
pub(crate) fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default();
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u64::try_from(size).ok());
    pages * page.unwrap_or_default()
}

/// Bytes that the cgroups of this process may have, of both versions: the least of what is said from its own up to the root; none
/// if there is no limit. `proc` and `cgroups` are usually `/proc` and `/sys/fs/cgroup`.
pub(crate) fn cgroup_limit(proc: &Path, cgroups: &Path) -> Option<u64> {
    let own = fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
    own.lines().filter_map(|line| limit_of(line, cgroups)).min()
}

/// What a line of `/proc/self/cgroup` leads to: `4:memory:/pod/agent`, or `0::/pod/agent` of version 2.
fn limit_of(line: &str, cgroups: &Path) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
    let roots: Vec<(PathBuf, &str)> = match controllers {
        "" => vec![(cgroups.to_owned(), "memory.max"), (cgroups.join("unified"), "memory.max")],
        _ if controllers.split(',').any(|name| name == "memory") => vec![(cgroups.join("memory"), "memory.limit_in_bytes")],
        _ => Vec::new(),
    };
    let limit = |folder: &Path, file: &str| {
        let number = fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok()?;
        Some(number).filter(|limit| *limit < UNLIMITED)
    };
    let all = roots.iter().flat_map(|(root, file)| {
        let folder = root.join(path);
        let folders: Vec<_> = folder.ancestors().take_while(|folder| folder.starts_with(root)).map(Path::to_owned).collect();
        folders.into_iter().filter_map(|folder| limit(&folder, file)).collect::<Vec<_>>()
    });
    all.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        }
        cgroup_limit(&root.path().join("proc"), &root.path().join("cg"))
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(resident() > 1 << 20, "{}", resident());
    }

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let second = ("proc/self/cgroup", "0::/pod/agent\n");
        assert_eq!(limit(&[second]), None);
        assert_eq!(limit(&[second, ("cg/pod/agent/memory.max", "max\n")]), None);
        assert_eq!(limit(&[second, ("cg/pod/agent/memory.max", "max\n"), ("cg/pod/memory.max", "5000\n")]), Some(5_000));
        assert_eq!(
            limit(&[second, ("cg/unified/pod/agent/memory.max", "700\n"), ("cg/unified/pod/memory.max", "900\n")]),
            Some(700)
        );
        let first = ("proc/self/cgroup", "9:cpu:/\n4:hugetlb,memory:/own\n0::/\n");
        let own = "cg/memory/own/memory.limit_in_bytes";
        assert_eq!(limit(&[first, (own, "9223372036854771712\n")]), None);
        assert_eq!(limit(&[first, (own, "4096\n"), ("cg/memory/memory.limit_in_bytes", "9223372036854771712\n")]), Some(4_096));
        assert_eq!(limit(&[("proc/self/cgroup", "9:cpu:/x\n"), ("cg/cpu/x/memory.max", "1\n")]), None);
    }
}
