// Basalt-chaos cuts the power and kills processes under a store, and checks from outside that what was acknowledged is there.
//
//	basalt-chaos power-cut [--rounds N] [--seed S] [--only LANE]   Basalt on ext4 and ZFS, with its control; needs the guest of testbed/zfsvm
//	basalt-chaos compare   [--rounds N] [--seed S] [--only LANE]   the same cuts for what Kubo has without Basalt
//	basalt-chaos kill      [--rounds N] [--seed S] [--only LANE]   agent, Kubo or both are killed under Kubo's load
//	basalt-chaos soak      [--minutes N] [--seed S] [--only LANE]  both under load for long, with restarts: nothing may grow
//
//	basalt-chaos full-disk [--only CASE]                           small file systems full in every way, under Kubo; needs the guest too
//
// and, used by itself: guest PLAN and fill PLAN (in the guest), nosync PROGRAM ARGS... (without flushes).
package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"basalt.dev/go/internal/fulldisk"
	"basalt.dev/go/internal/killtest"
	"basalt.dev/go/internal/nosync"
	"basalt.dev/go/internal/powercut"
	"basalt.dev/go/internal/soak"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "basalt-chaos:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: basalt-chaos power-cut | compare | kill | soak [flags]")
	}
	switch command, rest := args[0], args[1:]; command {
	case "guest":
		if len(rest) != 1 {
			return errors.New("usage: basalt-chaos guest PLAN")
		}
		plan, err := powercut.Decode(rest[0])
		if err != nil {
			return err
		}
		return powercut.Guest(plan)
	case "fill":
		if len(rest) != 1 {
			return errors.New("usage: basalt-chaos fill PLAN")
		}
		plan, err := fulldisk.Decode(rest[0])
		if err != nil {
			return err
		}
		return fulldisk.Guest(plan)
	case "full-disk":
		return fullDisk(rest)
	case "nosync":
		if len(rest) == 0 {
			return errors.New("usage: basalt-chaos nosync PROGRAM ARGS...")
		}
		return nosync.Exec(rest)
	case "power-cut", "compare":
		return powerCut(command, rest)
	case "kill":
		return kill(rest)
	case "soak":
		return endure(rest)
	default:
		return fmt.Errorf("no command %q; there are power-cut, compare, kill, soak and full-disk", command)
	}
}

// seedFlag reads what an earlier run printed.
func seedFlag(flags *flag.FlagSet) *uint64 {
	seed := rand.Uint64()
	flags.Func("seed", "replays the choices of the run that printed it", func(text string) (err error) {
		seed, err = strconv.ParseUint(text, 0, 64)
		return err
	})
	return &seed
}

func powerCut(command string, args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bin := filepath.Dir(self)
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	o := powercut.Options{Log: os.Stdout, Self: self}
	flags.IntVar(&o.Rounds, "rounds", 20, "how often the power is cut while a store writes")
	flags.StringVar(&o.Only, "only", "", "one lane only")
	flags.StringVar(&o.Dir, "dir", filepath.Join(bin, "..", "build", "power-cut"), "for disks; what a failure needs stays there")
	flags.StringVar(&o.Zfsvm, "zfsvm", filepath.Join(bin, "..", "testbed", "zfsvm"), "the guest's starter")
	flags.StringVar(&o.Basalt, "basalt", filepath.Join(bin, "basalt"), "the program under test; in the folder of this one, which is what the guest sees")
	seed := seedFlag(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	o.Seed = *seed
	if o.Rounds < 1 || flags.NArg() > 0 {
		return fmt.Errorf("%d rounds and the arguments %v: at least one round, and nothing but flags", o.Rounds, flags.Args())
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return err
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return err
	}
	fmt.Printf("seed %#x\n", o.Seed)
	if command == "compare" {
		return powercut.Compare(o)
	}
	result, err := powercut.Run(o)
	if err != nil {
		fmt.Println(err)
		err = fmt.Errorf("failed; the same choices again: --seed %#x --rounds %d", o.Seed, o.Rounds)
	}
	fmt.Println(result)
	return err
}

func kill(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bin := filepath.Dir(self)
	flags := flag.NewFlagSet("kill", flag.ContinueOnError)
	o := killtest.Options{Log: os.Stdout, Basalt: filepath.Join(bin, "basalt"), IPFS: filepath.Join(bin, "ipfs"), IPFSwith: filepath.Join(bin, "ipfs-ffi")}
	flags.IntVar(&o.Rounds, "rounds", 100, "how often something is killed under load")
	flags.StringVar(&o.Only, "only", "", "one lane only")
	flags.StringVar(&o.Dir, "dir", filepath.Join(bin, "..", "build", "kill-test"), "for the repos; what fails stays there")
	seed := seedFlag(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	o.Seed = *seed
	if o.Rounds < 1 || flags.NArg() > 0 {
		return fmt.Errorf("%d rounds and the arguments %v: at least one round, and nothing but flags", o.Rounds, flags.Args())
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return err
	}
	fmt.Printf("seed %#x\n", o.Seed)
	result, err := killtest.Run(o)
	if err != nil {
		fmt.Println(err)
		err = fmt.Errorf("failed; the same choices again: --seed %#x --rounds %d", o.Seed, o.Rounds)
	}
	fmt.Println(result)
	return err
}

func endure(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bin := filepath.Dir(self)
	flags := flag.NewFlagSet("soak", flag.ContinueOnError)
	o := soak.Options{Log: os.Stdout, Basalt: filepath.Join(bin, "basalt"), IPFS: filepath.Join(bin, "ipfs"), IPFSwith: filepath.Join(bin, "ipfs-ffi")}
	minutes := flags.Float64("minutes", 30, "how long")
	flags.StringVar(&o.Only, "only", "", "one lane only: grpc or ffi")
	flags.StringVar(&o.Dir, "dir", filepath.Join(bin, "..", "build", "soak"), "for repos, samples and the graph")
	flags.StringVar(&o.Leak, "leak", "", "leak on purpose, which must be seen: connections or disk")
	again := flags.Bool("again", false, "only judge and draw again what the run before has written")
	seed := seedFlag(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *again {
		result, err := soak.Again(o.Dir, os.Stdout)
		fmt.Println(result)
		return err
	}
	o.Seed, o.Length = *seed, time.Duration(*minutes*float64(time.Minute))
	if *minutes <= 0 || flags.NArg() > 0 {
		return fmt.Errorf("%g minutes and the arguments %v: more than none, and nothing but flags", *minutes, flags.Args())
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return err
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return err
	}
	fmt.Printf("seed %#x\n", o.Seed)
	result, err := soak.Run(o)
	if err != nil {
		fmt.Println(err)
		err = fmt.Errorf("failed; the same choices again: --seed %#x --minutes %g", o.Seed, *minutes)
	}
	fmt.Println(result)
	return err
}

func fullDisk(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bin := filepath.Dir(self)
	flags := flag.NewFlagSet("full-disk", flag.ContinueOnError)
	o := fulldisk.Options{
		Log: os.Stdout, Self: self,
		Basalt: filepath.Join(bin, "basalt"), IPFS: filepath.Join(bin, "ipfs"), IPFSwithN: filepath.Join(bin, "ipfs-ffi"),
	}
	only := flags.String("only", "", "one case only")
	flags.StringVar(&o.Dir, "dir", filepath.Join(bin, "..", "build", "full-disk"), "for what runs without a guest")
	flags.StringVar(&o.Zfsvm, "zfsvm", filepath.Join(bin, "..", "testbed", "zfsvm"), "the guest's starter")
	seed := seedFlag(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	o.Seed = *seed
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return err
	}
	if o.Cases, err = fulldisk.Named(*only); err != nil {
		return err
	}
	result, err := fulldisk.Run(o)
	fmt.Println(result)
	return err
}
