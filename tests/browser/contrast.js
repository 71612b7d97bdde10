// The texts of the page's main part that stand out less than WCAG 2.2 asks for (1.4.3, level AA).
() => {
  const numbers = (color) => color.match(/[\d.]+/g).map(Number);
  const linear = (part) => (part <= 10 ? part / 3295 : ((part / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([red, green, blue]) =>
    0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);

  const background = (element) => {
    const [red, green, blue, alpha = 1] = numbers(getComputedStyle(element).backgroundColor);
    return alpha ? [red, green, blue] : background(element.parentElement);
  };
  const contrast = (element) => {
    const text = luminance(numbers(getComputedStyle(element).color));
    const ground = luminance(background(element));
    return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
  };
  const shown = (element) =>
    element.checkVisibility() &&
    [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());

  return [...document.querySelectorAll("main *")]
    .filter((element) => shown(element) && contrast(element) < 4.5)
    .map((element) => `${element.textContent.trim()}: ${contrast(element).toFixed(1)}`);
};
