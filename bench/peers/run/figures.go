package run

// Figures are what a row has, by name; those that a case has nothing to say about are missing.
type Figures map[string]float64

// The names of figures.
const (
	Rate       = "rate"             // in the case's unit
	Ops        = "ops"              // calls that were made
	Seconds    = "seconds"          // wall time of them, with the Sync at the end
	P50        = "p50_us"           // latency of a call
	P99        = "p99_us"           //
	P999       = "p999_us"          //
	Written    = "written_per_byte" // bytes that the processes wrote for each of payload, from open to after close
	OnDevice   = "device_per_byte"  // the same by the block device, which others use as well
	Flushes    = "flushes_per_op"   // of the block device, for each Put or batch; others' are in it
	CPU        = "cpu_s_per_gib"    // of all processes of the store, from open to after close
	CPUPerOp   = "cpu_us_per_op"    //
	Memory     = "memory_mib"       // peak of the RSS above what the program had before open, with all of the agent's
	FDs        = "fds"              // open at the end
	Inodes     = "inodes"           // files and folders on disk
	DiskPer    = "disk_per_byte"    // space on disk for each byte stored
	BackAtOnce = "space_back_0"     // share of the deleted bytes that the file system has back when the last Delete and CollectGarbage return
	BackLater  = "space_back_later" // and after the time that the case waits
	OpenMS     = "open_ms"          //
	FirstGetMS = "first_get_ms"     //
	FirstKeyMS = "first_key_ms"     //
	Lost       = "lost"             // blocks that were acknowledged and aren't there
	Unflushed  = "unflushed"        // 1: it claims to flush each Put, and the disk saw none of that
	BesideRate = "beside_per_s"     // calls a second of what ran beside
	BesideP99  = "beside_p99_us"    //
)

// Row is what one run of a case came to.
type Row struct {
	Case    string  `json:"case"`
	Figures Figures `json:"figures,omitempty"`
	// Error says why there are no figures.
	Error string `json:"error,omitempty"`
}
