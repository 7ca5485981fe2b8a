"""The child's side of `program`: give everything up, then run program.py in this very process.

    python -I program_guard.py MEMORY OUTPUT SECONDS [FOLDER THAT IS READ]

It runs in the folder that is thrown away.

Standard input brings a word; it comes back in the file `passed` if the program ends without an
error, so that leaving early is not passing. A file of its own, run by path: it imports little.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from pathlib import Path

# Linux' numbers of system calls on x86-64 and ARM64: what a program that computes never needs.
DENIED = {
    "other processes": (
        {"fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "setsid": 112, "setpgid": 109},
        {"execve": 221, "execveat": 281, "setsid": 157, "setpgid": 154},
    ),
    "signals and other processes' memory": (
        {"kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129}
        | {"rt_tgsigqueueinfo": 297, "pidfd_open": 434, "pidfd_send_signal": 424}
        | {"pidfd_getfd": 438, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311}
        | {"process_madvise": 440, "setpriority": 141, "sched_setaffinity": 203}
        | {"sched_setscheduler": 144, "sched_setparam": 142, "sched_setattr": 314}
        | {"setrlimit": 160, "prlimit64": 302, "ioprio_set": 251, "move_pages": 279},
        {"kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138}
        | {"rt_tgsigqueueinfo": 240, "pidfd_open": 434, "pidfd_send_signal": 424}
        | {"pidfd_getfd": 438, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271}
        | {"process_madvise": 440, "setpriority": 140, "sched_setaffinity": 122}
        | {"sched_setscheduler": 119, "sched_setparam": 118, "sched_setattr": 274}
        | {"setrlimit": 164, "prlimit64": 261, "ioprio_set": 30, "move_pages": 239},
    ),
    "sockets and queues": (
        {"socket": 41, "socketpair": 53, "connect": 42, "bind": 49, "listen": 50, "accept": 43}
        | {"accept4": 288, "shmget": 29, "shmat": 30, "msgget": 68, "semget": 64, "mq_open": 240}
        | {"io_uring_setup": 425},
        {"socket": 198, "socketpair": 199, "connect": 203, "bind": 200, "listen": 201}
        | {"accept": 202, "accept4": 242, "shmget": 194, "shmat": 196, "msgget": 186}
        | {"semget": 190, "mq_open": 180, "io_uring_setup": 425},
    ),
    "owners, modes and times of files": (
        {"chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "chown": 92, "fchown": 93}
        | {"lchown": 94, "fchownat": 260, "utime": 132, "utimes": 235, "utimensat": 280}
        | {"futimesat": 261, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190}
        | {"removexattr": 197, "lremovexattr": 198, "fremovexattr": 199},
        {"fchmod": 52, "fchmodat": 53, "fchmodat2": 452, "fchown": 55, "fchownat": 54}
        | {"utimensat": 88, "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14}
        | {"lremovexattr": 15, "fremovexattr": 16},
    ),
    "the system": (
        {"mount": 165, "umount2": 166, "move_mount": 429, "open_tree": 428, "fsopen": 430}
        | {"unshare": 272, "setns": 308, "pivot_root": 155, "chroot": 161, "bpf": 321}
        | {"perf_event_open": 298, "add_key": 248, "request_key": 249, "keyctl": 250}
        | {"userfaultfd": 323, "init_module": 175, "finit_module": 313, "delete_module": 176}
        | {"kexec_load": 246, "kexec_file_load": 320, "reboot": 169, "swapon": 167}
        | {"swapoff": 168, "settimeofday": 164, "clock_settime": 227, "clock_adjtime": 305}
        | {"adjtimex": 159, "sethostname": 170, "setdomainname": 171, "personality": 135}
        | {"quotactl": 179, "acct": 163, "syslog": 103, "vhangup": 153, "open_by_handle_at": 304},
        {"mount": 40, "umount2": 39, "move_mount": 429, "open_tree": 428, "fsopen": 430}
        | {"unshare": 97, "setns": 268, "pivot_root": 41, "chroot": 51, "bpf": 280}
        | {"perf_event_open": 241, "add_key": 217, "request_key": 218, "keyctl": 219}
        | {"userfaultfd": 282, "init_module": 105, "finit_module": 273, "delete_module": 106}
        | {"kexec_load": 104, "kexec_file_load": 294, "reboot": 142, "swapon": 224}
        | {"swapoff": 225, "settimeofday": 170, "clock_settime": 112, "clock_adjtime": 266}
        | {"adjtimex": 171, "sethostname": 161, "setdomainname": 162, "personality": 92}
        | {"quotactl": 60, "acct": 89, "syslog": 116, "vhangup": 58, "open_by_handle_at": 265},
    ),
}
MACHINES = {  # column of DENIED, seccomp's word for it, clone
    "x86_64": (0, 0xC000003E, 56),
    "aarch64": (1, 0xC00000B7, 220),
}
_CLONE3, _THREAD = 435, 0x10000
_LANDLOCK = (444, 445, 446)  # create a ruleset, add a rule, restrict
_WRITES = sum(1 << bit for bit in (1, *range(4, 15)))  # Landlock's rights that change anything
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# what anybody may read, and programs need: libraries, numbers of processors, time zones
_SYSTEM = (
    *("/usr", "/lib", "/lib64", "/bin", "/opt", "/nix", "/sys"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat"),
    *("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"),
    *("/etc/fonts", "/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types", "/etc/passwd"),
)

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _FAIL, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000


def _filter() -> bytes:
    """Seccomp's program: an error for what is denied, and for a clone that is no thread."""
    column, machine, clone = MACHINES[platform.machine()]
    numbers = [number for table in DENIED.values() for number in table[column].values()]
    steps = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, machine),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, 0x40000000),  # x86-64's other numbers
        (_RETURN, 0, 0, _FAIL | errno.EPERM),
        (_EQUAL, 0, 1, _CLONE3),  # its flags lie in memory; the C library then tries clone
        (_RETURN, 0, 0, _FAIL | errno.ENOSYS),
        (_EQUAL, 0, 4, clone),
        (_LOAD, 0, 0, 16),
        (_ANY_BIT, 1, 0, _THREAD),
        (_RETURN, 0, 0, _FAIL | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    for number in numbers:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _FAIL | errno.EPERM)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *step) for step in steps)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what} failed")
    return result


def restrict(folder: str, *reads: str) -> None:
    """For this process, for good: writes only in a folder, and no call that is denied.

    It reads that, the system's and Python's own files, and what lies in `reads`. Raises OSError
    where the kernel cannot.
    """
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise OSError(f"nothing is kept from it on {sys.platform} {platform.machine()}")
    system = ctypes.CDLL(None, use_errno=True)
    system.syscall.restype = ctypes.c_long
    create, add, enter = _LANDLOCK
    version = _checked(system.syscall(create, None, 0, 1), "Landlock")
    rights = _WRITES if version >= 3 else _WRITES & ~(3 << 13) | (version == 2) << 13
    _checked(system.prctl(38, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    rights |= _READ_FILE | _READ_DIR
    attributes = struct.pack("Q", rights)
    ruleset = _checked(system.syscall(create, attributes, len(attributes), 0), "Landlock")
    python = (sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path)
    places = {Path(one) for one in (*_SYSTEM, *python, *reads) if one and Path(one).exists()}
    rules = {one: _READ_FILE | (_READ_DIR if one.is_dir() else 0) for one in places}
    rules |= {Path("/dev/null"): _READ_FILE | 1 << 1, Path(folder): rights}
    for place, allowed in rules.items():
        descriptor = os.open(place, os.O_PATH)
        rule = struct.pack("=Qi", allowed, descriptor)
        _checked(system.syscall(add, ruleset, 1, rule, 0), "Landlock")
        os.close(descriptor)
    _checked(system.syscall(enter, ruleset, 0), "Landlock")
    os.close(ruleset)
    steps = _filter()
    program = _Program(len(steps) // 8, steps)
    _checked(system.prctl(22, 2, ctypes.byref(program), 0, 0), "seccomp")


def limit(memory: int, output: int, seconds: int) -> None:
    import resource

    for name, most in (
        ("AS", memory),
        ("FSIZE", output),
        ("CPU", seconds),
        ("NOFILE", 64),
        ("CORE", 0),
        ("NPROC", 256),
    ):
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def main(memory: int, output: int, seconds: int, *reads: str) -> None:
    word = sys.stdin.read()
    passed = os.open("passed", os.O_WRONLY | os.O_CREAT)
    code = compile(Path("program.py").read_text("utf-8"), "program.py", "exec")
    unkept = os.open("unkept", os.O_WRONLY | os.O_CREAT)
    limit(memory, output, seconds)
    try:
        restrict(".", *reads)
    except OSError as error:
        os.write(unkept, str(error.strerror or error).encode())
    os.close(unkept)
    exec(code, {"__name__": "__main__"})
    os.write(passed, word.encode())


if __name__ == "__main__":
    memory, output, seconds, *reads = sys.argv[1:]
    main(int(memory), int(output), int(seconds), *reads)
