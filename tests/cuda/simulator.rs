//! A [`Machine`] that is a program on the CPU.

use candle_rbe::cuda::{Arg, Dense, Element, Launch, MODULES, Machine, exhausted};
use candle_rbe::{Error, Result};
use half::{bf16, f16};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::ThreadId;

/// What a machine looks for beside wrong results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checks {
    /// Nothing: it is fast.
    None,
    /// Addresses outside buffers and shared memory, misaligned loads.
    Addresses,
    /// Accesses that no barrier orders.
    Races,
}

/// In which order blocks and their threads run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Forward,
    Backward,
}

struct Process {
    child: Child,
    launches: usize,
    allocations: usize,
    /// So many memories more can be had.
    room: usize,
    graph: Option<Graph>,
}

/// Launches to be run again, and the memory that a device would have kept for them.
#[derive(Default)]
pub(crate) struct Graph {
    launches: Vec<Vec<u8>>,
    kept: Vec<Arc<Memory>>,
}

impl Graph {
    pub(crate) fn launches(&self) -> usize {
        self.launches.len()
    }
}

struct Inner {
    process: Mutex<Process>,
    log: PathBuf,
    order: Order,
    /// What each thread of the host has asked for and nobody has waited for.
    streams: Option<Mutex<HashMap<ThreadId, Vec<Vec<u8>>>>>,
}

/// One running machine.
#[derive(Clone)]
pub(crate) struct Simulator(Arc<Inner>);

/// Memory in the machine's process.
pub(crate) struct Memory {
    address: u64,
    pub(crate) bytes: usize,
    /// Whether it is zero again when its user has done with it.
    counts: bool,
    machine: Simulator,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.machine.0.streams.is_some() {
            // Somebody else's from now on, as far as this thread's stream knows.
            let _ = self.machine.write(self, &vec![0xff; self.bytes]);
            return;
        }
        if self.counts && !std::thread::panicking() {
            assert!(self.machine.read(self).iter().all(|byte| *byte == 0), "counters are not zero again");
        }
        // A machine that has stopped has freed everything.
        let _ = self.machine.send(&[word('F'), self.address.to_le_bytes()].concat());
    }
}

fn word(letter: char) -> [u8; 8] {
    u64::from(letter).to_le_bytes()
}

fn size(size: usize) -> [u8; 8] {
    (size as u64).to_le_bytes()
}

impl Simulator {
    /// Starts a machine; `None` where there is no g++ to build one.
    pub(crate) fn start(checks: Checks, order: Order) -> Option<Self> {
        Self::start_with(checks, order, None)
    }

    /// Starts a machine on which each thread of the host has a stream of its own, which does nothing until somebody waits for it.
    pub(crate) fn start_with_streams() -> Option<Self> {
        Self::start_with(Checks::None, Order::Forward, Some(Mutex::default()))
    }

    fn start_with(
        checks: Checks,
        order: Order,
        streams: Option<Mutex<HashMap<ThreadId, Vec<Vec<u8>>>>>,
    ) -> Option<Self> {
        let program = program(checks)?;
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let log = program.with_extension(format!("{}.{number}.log", std::process::id()));
        let mut command = match checks {
            // ThreadSanitizer needs addresses that are not drawn at random.
            Checks::Races
                if Command::new("setarch").args(["-R", "true"]).status().is_ok_and(|s| s.success()) =>
            {
                let mut command = Command::new("setarch");
                command.arg("-R").arg(&program);
                command
            }
            _ => Command::new(&program),
        };
        let child = command
            .env("ASAN_OPTIONS", "detect_leaks=0")
            .env("TSAN_OPTIONS", "halt_on_error=1 report_signal_unsafe=0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).expect("a log"))
            .spawn()
            .expect("the machine starts");
        let process = Process { child, launches: 0, allocations: 0, room: usize::MAX, graph: None };
        Some(Self(Arc::new(Inner { process: Mutex::new(process), log, order, streams })))
    }

    /// Memories that were allocated so far, those that a device keeps left out.
    pub(crate) fn allocations(&self) -> usize {
        self.0.process.lock().unwrap().allocations
    }

    /// Kernels launched so far.
    pub(crate) fn launches(&self) -> usize {
        self.0.process.lock().unwrap().launches
    }

    /// Lets so many memories be had from now on.
    pub(crate) fn set_room(&self, memories: usize) {
        self.0.process.lock().unwrap().room = memories;
    }

    /// Panics where a graph is being captured.
    fn expect_no_capture(&self, what: &str) {
        let captures = self.0.process.lock().unwrap().graph.is_some();
        assert!(!captures, "{what} while a graph is captured");
    }

    /// Keeps a product's own memory for the graph that is being captured.
    fn keep(&self, memory: Memory) -> Arc<Memory> {
        let memory = Arc::new(memory);
        let mut process = self.0.process.lock().unwrap();
        process.graph.iter_mut().for_each(|graph| graph.kept.push(memory.clone()));
        memory
    }

    /// Queues a request on this thread's stream; `false` where there are no streams.
    fn later(&self, request: &[u8]) -> bool {
        let Some(streams) = &self.0.streams else { return false };
        streams.lock().unwrap().entry(std::thread::current().id()).or_default().push(request.to_vec());
        true
    }

    /// Does what these streams were asked for.
    fn run_streams(&self, chosen: impl Fn(ThreadId) -> bool) -> Result<()> {
        let Some(streams) = &self.0.streams else { return Ok(()) };
        let mut streams = streams.lock().unwrap();
        let queues = streams.iter_mut().filter(|(thread, _)| chosen(**thread));
        let requests: Vec<_> = queues.flat_map(|(_, queue)| std::mem::take(queue)).collect();
        for request in requests {
            if request[..8] == word('L') { self.launched(&request) } else { self.send(&request) }?;
        }
        Ok(())
    }

    /// Changes what a memory holds.
    pub(crate) fn overwrite(&self, memory: &Memory, bytes: &[u8]) -> Result<()> {
        self.write(memory, bytes)
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        let mut process = self.0.process.lock().unwrap();
        let sent = process.child.stdin.as_mut().expect("a pipe").write_all(bytes);
        sent.map_err(|_| self.stopped())
    }

    fn ask(&self, bytes: &[u8], answer: &mut [u8]) -> Result<()> {
        let mut process = self.0.process.lock().unwrap();
        let child = &mut process.child;
        let sent = child.stdin.as_mut().expect("a pipe").write_all(bytes);
        let got = sent.and_then(|()| child.stdout.as_mut().expect("a pipe").read_exact(answer));
        got.map_err(|_| self.stopped())
    }

    /// What a sanitizer wrote before it stopped the machine.
    fn stopped(&self) -> Error {
        let log = std::fs::read_to_string(&self.0.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().filter(|line| !line.trim().is_empty()).take(24).collect();
        candle_rbe::CodecError::unsupported(format!("the machine stopped:\n{}", lines.join("\n"))).into()
    }

    /// The bytes of a memory.
    pub(crate) fn read(&self, memory: &Memory) -> Vec<u8> {
        self.run_streams(|thread| thread == std::thread::current().id()).expect("the machine runs");
        let mut bytes = vec![0; memory.bytes];
        let request = [word('R'), memory.address.to_le_bytes(), size(memory.bytes)].concat();
        self.ask(&request, &mut bytes).expect("the machine runs");
        bytes
    }

    /// Elements of a memory as F32.
    pub(crate) fn values(&self, memory: &Memory, element: Element) -> Vec<f32> {
        decode(&self.read(memory), element)
    }

    /// A kernel by its name, in so many blocks; one whose name begins so waits itself for what was launched before.
    pub(crate) fn run(
        &self,
        kernel: &str,
        blocks: usize,
        threads: usize,
        shared_bytes: usize,
        memory: &Memory,
    ) -> Result<()> {
        let waits = kernel.starts_with("waits");
        self.queue(kernel, [blocks, 1, 1], threads, (shared_bytes, waits), &[memory.address], &[])
    }

    fn new_memory(&self, bytes: usize) -> Result<Memory> {
        {
            let room = &mut self.0.process.lock().unwrap().room;
            *room = room.checked_sub(1).ok_or_else(|| exhausted(bytes, 0))?;
        }
        let mut address = [0; 8];
        self.ask(&[word('A'), size(bytes)].concat(), &mut address)?;
        Ok(Memory { address: u64::from_le_bytes(address), bytes, counts: false, machine: self.clone() })
    }

    fn write(&self, memory: &Memory, bytes: &[u8]) -> Result<()> {
        let request = [&word('W'), &memory.address.to_le_bytes()[..], &size(bytes.len()), bytes].concat();
        if self.later(&request) { Ok(()) } else { self.send(&request) }
    }

    fn queue(
        &self,
        kernel: &str,
        grid: [usize; 3],
        threads: usize,
        (shared_bytes, waits): (usize, bool),
        words: &[u64],
        floats: &[f32],
    ) -> Result<()> {
        let backward = usize::from(self.0.order == Order::Backward);
        let mut request = [word('L'), size(kernel.len())].concat();
        request.extend(kernel.bytes());
        request.extend(grid.iter().flat_map(|n| u32::try_from(*n).expect("a grid").to_le_bytes()));
        let waits = usize::from(waits);
        request
            .extend([threads, shared_bytes, backward, waits, words.len(), floats.len()].map(size).concat());
        request.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        request.extend(floats.iter().flat_map(|float| float.to_le_bytes()));
        {
            let mut process = self.0.process.lock().unwrap();
            process.launches += 1;
            if let Some(graph) = &mut process.graph {
                graph.launches.push(request);
                return Ok(());
            }
        }
        if self.later(&request) { Ok(()) } else { self.launched(&request) }
    }

    fn launched(&self, request: &[u8]) -> Result<()> {
        let mut length = [0; 8];
        self.ask(request, &mut length)?;
        let mut wrong = vec![0; u64::from_le_bytes(length) as usize];
        self.ask(&[], &mut wrong)?;
        match String::from_utf8_lossy(&wrong) {
            wrong if wrong.is_empty() => Ok(()),
            wrong => Err(Error::Codec(candle_rbe::CodecError::Unsupported { what: wrong.into_owned() })),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let child = &mut self.process.get_mut().unwrap().child;
        drop(child.stdin.take()); // it ends with its input
        let _ = child.wait();
        let _ = std::fs::remove_file(&self.log);
    }
}

impl Machine for Simulator {
    type Memory = Memory;
    type Graph = Graph;

    fn allocate(&self, bytes: usize) -> Result<Memory> {
        self.expect_no_capture("an allocation");
        self.0.process.lock().unwrap().allocations += 1;
        self.new_memory(bytes)
    }

    fn allocate_zeroed(&self, bytes: usize) -> Result<Memory> {
        self.upload(&vec![0; bytes])
    }

    fn upload(&self, bytes: &[u8]) -> Result<Memory> {
        let memory = self.allocate(bytes.len())?;
        self.write(&memory, bytes)?;
        Ok(memory)
    }

    /// A new one each time, of just so many bytes and full of NaN: what a product finds in it, and what it writes beyond it, shows.
    fn scratch(&self, bytes: usize) -> Result<Arc<Memory>> {
        self.new_memory(bytes).map(|memory| self.keep(memory))
    }

    /// New ones each time, which must be zero when the product is done with them.
    fn counters(&self, count: usize) -> Result<Arc<Memory>> {
        let mut memory = self.new_memory(count * size_of::<i32>())?;
        self.write(&memory, &vec![0; memory.bytes])?;
        memory.counts = true;
        Ok(self.keep(memory))
    }

    fn address(&self, memory: &Memory) -> u64 {
        memory.address
    }

    fn wait(&self) -> Result<()> {
        self.expect_no_capture("waiting");
        self.run_streams(|thread| thread == std::thread::current().id())
    }

    fn wait_for_all(&self) -> Result<()> {
        self.expect_no_capture("waiting");
        self.run_streams(|_| true)
    }

    fn launch(&self, launch: Launch<'_, Memory>) -> Result<()> {
        let (mut words, mut floats) = (Vec::new(), Vec::new());
        for arg in &launch.args {
            match arg {
                Arg::Memory(memory, offset) => {
                    assert!(*offset <= memory.bytes, "{}: an address beyond its memory", launch.kernel);
                    words.push(memory.address + *offset as u64);
                }
                Arg::Null => words.push(0),
                Arg::Int(value) => words.push(u64::from(u32::try_from(*value).expect("an int"))),
                Arg::Float(value) => floats.push(*value),
            }
        }
        assert!(launch.shared_bytes <= self.shared_bytes_limit(), "{}", launch.kernel);
        self.queue(
            &launch.kernel,
            launch.grid,
            launch.threads,
            (launch.shared_bytes, launch.waits),
            &words,
            &floats,
        )
    }

    /// Panics where `work` asks for what a graph could not hold.
    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Option<Graph> {
        self.0.process.lock().unwrap().graph = Some(Graph::default());
        let done = work();
        let graph = self.0.process.lock().unwrap().graph.take();
        graph.filter(|_| done.is_ok())
    }

    fn replay(&self, graph: &Graph) -> Result<()> {
        let run = |request: &Vec<u8>| if self.later(request) { Ok(()) } else { self.launched(request) };
        graph.launches.iter().try_for_each(run)
    }

    fn matmul(&self, a: &Memory, b: &Memory, size: Dense) -> Result<Memory> {
        let Dense { element, rows, inner, cols, transposed } = size;
        let (a, b) = (self.values(a, element), self.values(b, element));
        assert_eq!((a.len(), b.len()), (rows * inner, inner * cols));
        let mut c = vec![0f32; rows * cols];
        for (a, c) in a.chunks_exact(inner).zip(c.chunks_exact_mut(cols)) {
            for (k, a) in a.iter().enumerate() {
                for (col, c) in c.iter_mut().enumerate() {
                    *c += a * if transposed { b[col * inner + k] } else { b[k * cols + col] };
                }
            }
        }
        self.upload(&encode(&c, element))
    }

    /// Few, so that the sums of small matrices are split in places, and each split has several scale groups.
    fn multiprocessors(&self) -> usize {
        2
    }

    /// What every card of compute capability 8 has.
    fn shared_bytes_limit(&self) -> usize {
        99 * 1024
    }
}

/// Values as a device has them.
pub(crate) fn encode(values: &[f32], element: Element) -> Vec<u8> {
    element.encode(values)
}

fn decode(bytes: &[u8], element: Element) -> Vec<f32> {
    let halves = |f: fn([u8; 2]) -> f32| bytes.as_chunks::<2>().0.iter().map(|bytes| f(*bytes)).collect();
    match element {
        Element::F32 => bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Element::F16 => halves(|bytes| f16::from_le_bytes(bytes).to_f32()),
        Element::BF16 => halves(|bytes| bf16::from_le_bytes(bytes).to_f32()),
    }
}

/// The machine's program, built once in each run of the tests.
fn program(checks: Checks) -> Option<PathBuf> {
    static PROGRAMS: [OnceLock<Option<PathBuf>>; 3] = [OnceLock::new(), OnceLock::new(), OnceLock::new()];
    PROGRAMS[checks as usize].get_or_init(|| build(checks)).clone()
}

fn build(checks: Checks) -> Option<PathBuf> {
    if std::env::var_os("RBE_CPU").is_some() {
        println!("the CUDA kernels were not run: they know no RBE_CPU, and are tested where it is not set");
        return None;
    }
    let supported = cfg!(all(target_arch = "x86_64", target_os = "linux"));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    let found = Command::new(&compiler).arg("--version").output().is_ok_and(|out| out.status.success());
    if !supported || !found {
        assert!(std::env::var_os("RBE_REQUIRE_GXX").is_none(), "no {compiler} that builds the machine");
        println!("the CUDA kernels were not run: that takes g++ on x86-64 Linux");
        return None;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let machine = root.join("tests/cuda/machine");
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda-machine-{checks:?}"));
    std::fs::create_dir_all(&out).expect("a directory");
    let (kernels, runtime): (&[&str], &[&str]) = match checks {
        Checks::None => (&[], &[]),
        Checks::Addresses => {
            let flags = &["-fsanitize=address,alignment", "-fno-sanitize-recover=alignment", "-g1"];
            (flags, flags)
        }
        // Fibers are the sanitizer's threads; what runs them is not looked at.
        Checks::Races => (&["-fsanitize=thread", "-g1"], &["-DRACES"]),
    };
    let mut sources: Vec<_> = MODULES.iter().map(|m| root.join(format!("kernels/{}.cu", m.name()))).collect();
    sources.extend([machine.join("faults.cu"), machine.join("machine.cpp")]);
    let compile = |source: &PathBuf| {
        let object = out.join(source.with_extension("o").file_name().expect("a name"));
        let own = if source.extension().is_some_and(|e| e == "cpp") { runtime } else { kernels };
        let done = Command::new(&compiler)
            .args(["-std=c++17", "-O1", "-w", "-march=native", "-fno-strict-aliasing", "-ffp-contract=off"])
            .args(own)
            .args(["-x", "c++", "-c", "-I"])
            .args([&machine, source])
            .arg("-o")
            .arg(&object)
            .output()
            .expect("the compiler runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        object
    };
    let objects: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = sources.iter().map(|source| scope.spawn(|| compile(source))).collect();
        threads.into_iter().map(|thread| thread.join().expect("it compiles")).collect()
    });
    let program = out.join("machine");
    let linked = Command::new(&compiler)
        .args(kernels)
        .arg("-rdynamic")
        .args(&objects)
        .arg("-ldl")
        .arg("-o")
        .arg(&program)
        .output()
        .expect("the linker runs");
    assert!(linked.status.success(), "{}", String::from_utf8_lossy(&linked.stderr));
    Some(program)
}
