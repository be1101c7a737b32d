//! seccomp(2), which neither nix nor rustix has.

use nix::errno::Errno;
use nix::libc;
use seccompiler::sock_filter;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, Ordering};

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
const NEW_LISTENER: u32 = 1 << 3;

/// Puts the calling thread under a filter. Returns the listener if the flags ask for one; it is
/// close-on-exec.
pub fn set_filter(flags: u32, filter: &[sock_filter]) -> nix::Result<Option<OwnedFd>> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| Errno::EINVAL)?,
        // The kernel only reads; the struct's pointer is mutable for setsockopt's sake. The
        // instruction is seccompiler's twin of libc's type: `repr(C)`, the same four fields.
        filter: filter.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `program` and the instructions that it points to outlive the call, and the length is
    // theirs. A filter changes what later syscalls do, not this process's memory.
    let done =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match i32::try_from(done) {
        Ok(-1) => Err(Errno::last()),
        // SAFETY: with this flag the kernel answers a new descriptor, which nobody else knows of.
        Ok(fd) if flags & NEW_LISTENER != 0 => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Ok(0) => Ok(None),
        // A thread's id: it could not be brought under the filter.
        _ => Err(Errno::ESRCH),
    }
}

/// Whether the kernel knows these flags. Nothing is installed: there is no filter to read.
pub fn knows_flags(flags: u32) -> bool {
    let nothing = std::ptr::null::<libc::sock_fprog>();
    // SAFETY: the kernel looks at the flags, then fails to read the filter at the null address.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, nothing) };
    done == -1 && Errno::last() == Errno::EFAULT
}

/// A number in memory that a process shares with its children: written and read without a syscall,
/// so that a filter has no say in it.
#[derive(Debug)]
pub struct Mailbox {
    page: NonNull<AtomicI32>,
}

impl Mailbox {
    /// A new one, which holds `value`. It is never unmapped: exec(2) or the process's end does that.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new(value: i32) -> nix::Result<Mailbox> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at a place of the kernel's choice; no memory in use is touched.
        let page =
            unsafe { libc::mmap(std::ptr::null_mut(), size_of::<AtomicI32>(), protection, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let page = NonNull::new(page.cast::<AtomicI32>()).ok_or(Errno::ENOMEM)?;
        let mailbox = Mailbox { page };
        mailbox.put(value);
        Ok(mailbox)
    }

    fn cell(&self) -> &AtomicI32 {
        // SAFETY: the page is mapped for good, zeroed, aligned, and used as an atomic only.
        unsafe { self.page.as_ref() }
    }

    /// What it holds.
    pub fn get(&self) -> i32 {
        self.cell().load(Ordering::Acquire)
    }

    /// Puts a number in.
    pub fn put(&self, value: i32) {
        self.cell().store(value, Ordering::Release);
    }
}

/// What only tests need: syscalls as a filter's subject makes them, and an end that needs none.
#[cfg(test)]
pub mod probe {
    use nix::errno::Errno;
    use nix::libc;

    /// Makes a syscall that the filter answers itself. Answers the errno, or 0.
    ///
    /// The caller has made sure, by running the filter in a virtual machine, that the kernel never
    /// carries the call out.
    pub fn denied(number: u32, args: &[u64; 6]) -> i32 {
        let a = args.map(u64::cast_signed);
        // SAFETY: the filter answers instead of the kernel: no argument is looked at.
        let done =
            unsafe { libc::syscall(i64::from(number.cast_signed()), a[0], a[1], a[2], a[3], a[4], a[5]) };
        if done == -1 { Errno::last_raw() } else { 0 }
    }

    /// As [`denied`], in the way of 32-bit x86, which takes three arguments here.
    #[cfg(target_arch = "x86_64")]
    pub fn denied_32(number: u32, args: [u32; 3]) -> i32 {
        let mut ret = i64::from(number);
        // SAFETY: as above; the kernel leaves all registers but rax and the caller-saved ones, and
        // rbx, which the compiler keeps for itself, is put back.
        unsafe {
            std::arch::asm!(
                "xchg {first}, rbx", "int 0x80", "xchg {first}, rbx",
                first = inout(reg) u64::from(args[0]) => _,
                inout("rax") ret,
                in("rcx") u64::from(args[1]),
                in("rdx") u64::from(args[2]),
                in("rsi") 0u64, in("rdi") 0u64,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        // The errno comes as a negative 32-bit number.
        ret.cast_unsigned().to_le_bytes()[..4].try_into().map_or(0, |low| -i32::from_le_bytes(low))
    }

    /// Ends the process without a syscall: by SIGILL when all is well, else by SIGTRAP.
    pub fn end(well: bool) -> ! {
        #[cfg(target_arch = "x86_64")]
        {
            if !well {
                // SAFETY: the trap's signal ends the process.
                unsafe { std::arch::asm!("int3") }
            }
            // SAFETY: an invalid instruction, whose signal ends the process.
            unsafe { std::arch::asm!("ud2", options(noreturn)) }
        }
        #[cfg(target_arch = "aarch64")]
        {
            if !well {
                // SAFETY: the trap's signal ends the process.
                unsafe { std::arch::asm!("brk #0") }
            }
            // SAFETY: an invalid instruction, whose signal ends the process.
            unsafe { std::arch::asm!("udf #0", options(noreturn)) }
        }
    }

    /// Answers every notification of a listener: go on. Returns when its processes have ended.
    pub fn let_all_go_on(listener: std::os::fd::BorrowedFd<'_>) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsRawFd;
        loop {
            // Before Linux 6.11 only poll(2) hears that they have ended, and the ioctl waits for ever.
            let mut ready = [PollFd::new(listener, PollFlags::POLLIN)];
            if !poll(&mut ready, PollTimeout::NONE)
                .is_ok_and(|_| ready[0].revents() == Some(PollFlags::POLLIN))
            {
                return;
            }
            // SAFETY: all zeroes is a value of this type, and what the kernel asks for.
            let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // _IOWR('!', 0, struct seccomp_notif)
            // SAFETY: the kernel fills in the structure, which outlives the call.
            if unsafe { libc::ioctl(listener.as_raw_fd(), 0xc050_2100_u32 as _, &raw mut asked) } < 0 {
                return;
            }
            let mut answer = libc::seccomp_notif_resp {
                id: asked.id,
                val: 0,
                error: 0,
                flags: 1, // SECCOMP_USER_NOTIF_FLAG_CONTINUE
            };
            // _IOWR('!', 1, struct seccomp_notif_resp)
            // SAFETY: the kernel reads the structure, which outlives the call.
            unsafe { libc::ioctl(listener.as_raw_fd(), 0xc018_2101_u32 as _, &raw mut answer) };
        }
    }
}
