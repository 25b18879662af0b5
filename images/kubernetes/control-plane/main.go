// The programs of a Kubernetes control plane in one: they share most of their code.
package main

import (
	"os"
	"time"
	_ "time/tzdata" // time zones of CronJobs

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/etcdctl/v3/ctlv3"
	"go.etcd.io/etcd/etcdutl/v3/etcdutl"
	"go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubectl's ways to authenticate
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubeadm "k8s.io/kubernetes/cmd/kubeadm/app"
	kubeadmerrors "k8s.io/kubernetes/cmd/kubeadm/app/util/errors"

	"stead/images/kubernetes/internal/multicall"
)

func main() {
	// etcdctl sets this for itself when it is loaded; the others take whole words.
	cobra.EnablePrefixMatching = false
	multicall.Run("kube-control-plane", map[string]func(){
		"etcd":                    func() { etcdmain.Main(os.Args) },
		"etcdctl":                 runEtcdctl,
		"etcdutl":                 func() { run(etcdutlCommand()) },
		"kube-apiserver":          func() { run(apiserver.NewAPIServerCommand()) },
		"kube-controller-manager": func() { run(controllermanager.NewControllerManagerCommand()) },
		"kube-scheduler":          func() { run(scheduler.NewSchedulerCommand()) },
		"kubeadm":                 func() { kubeadmerrors.HandleError(kubeadm.Run()) },
		"kubectl":                 runKubectl,
	})
}

func run(command *cobra.Command) {
	os.Exit(cli.Run(command))
}

func runEtcdctl() {
	cobra.EnablePrefixMatching = true
	ctlv3.MustStart()
}

// etcdutlCommand is etcdutl's, whose own root is in its main package.
func etcdutlCommand() *cobra.Command {
	root := &cobra.Command{Use: "etcdutl", Short: "An administrative command line tool for etcd3."}
	flags := root.PersistentFlags()
	flags.DurationVar(&etcdutl.FlockTimeout, "timeout", 10*time.Second, "time to wait for a lock on the db file, 0 for ever")
	flags.StringVarP(&etcdutl.OutputFormat, "write-out", "w", "simple", "fields, json, protobuf, simple or table")
	root.AddCommand(
		etcdutl.NewDefragCommand(),
		etcdutl.NewSnapshotCommand(),
		etcdutl.NewHashKVCommand(),
		etcdutl.NewMigrateCommand(),
		etcdutl.NewVersionCommand(),
	)
	return root
}

func runKubectl() {
	// The command is made with the verbosity that its arguments ask for.
	_, _ = logs.GlogSetter(kubectl.GetLogVerbosity(os.Args))
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err)
	}
}
