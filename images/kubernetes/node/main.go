// The programs of every Kubernetes node in one: kubelet and kube-proxy. Apart from the control plane's, so that a worker does
// not carry those.
package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	"stead/images/kubernetes/internal/multicall"
)

func main() {
	multicall.Run("kube-node", map[string]func(){
		"kube-proxy": func() { run(proxy.NewProxyCommand()) },
		"kubelet":    func() { run(kubelet.NewKubeletCommand(context.Background())) },
	})
}

func run(command *cobra.Command) {
	os.Exit(cli.Run(command))
}
