"""The steps of the page in their order: write, template, train, compare, share. A tab of a step is a module."""
