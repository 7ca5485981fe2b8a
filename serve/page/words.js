// The interface in English and Chinese: one key per text.

const ENGLISH = {
  skip: "Skip to your message",
  conversations: "Conversations",
  new: "New conversation",
  untitled: "New conversation",
  close: "Close",
  model: "Model",
  noModel: "no model",
  settings: "Settings",
  switchTheme: "Light or dark",
  messages: "Messages",
  welcome: "What is on your mind?",
  suggestions: [
    "Explain how a transformer reads text, to a curious teenager.",
    "Write a Python function that merges two sorted lists, with a test.",
    "Translate “the early bird catches the worm” into Chinese, with its nearest proverb.",
  ],
  yourMessage: "Message",
  send: "Send",
  stop: "Stop",
  toEnd: "Go to the end",
  hint: "Enter sends, Shift+Enter begins a new line, Esc stops",
  system: "System prompt of this conversation",
  systemDefault: "The model’s own",
  sampling: "Sampling",
  samplingNote: "An empty field leaves the choice to the model.",
  temperature: "Temperature",
  top_p: "Top p",
  top_k: "Top k",
  repetition_penalty: "Repetition penalty",
  max_tokens: "Most tokens",
  seed: "Seed",
  default: "default",
  key: "API key",
  keyNote: "Kept in this browser, sent to this server alone.",
  language: "Language",
  theme: "Theme",
  themeSystem: "System",
  themeLight: "Light",
  themeDark: "Dark",
  exportAll: "Export all",
  deleteAll: "Delete all",
  export: "Export",
  delete: "Delete",
  deleted: "Deleted.",
  undo: "Undo",
  copy: "Copy",
  edit: "Edit",
  cancel: "Cancel",
  resend: "Send again",
  again: "Another answer",
  retry: "Try again",
  you: "You",
  qwen: "Qwen",
  thinking: "Thinking",
  answering: "Answering",
  stopped: "Stopped.",
  interrupted: "Interrupted.",
  length: "The answer reached its limit of tokens.",
  content_filter: "The answer was cut by a filter.",
  noAnswer: "The server cannot be reached, or its answer broke off.",
  wrongKey: "The server wants an API key.",
  storageFull: "The browser’s storage is full; export and delete some conversations.",
};

const CHINESE = {
  skip: "跳到输入框",
  conversations: "对话",
  new: "新对话",
  untitled: "新对话",
  close: "关闭",
  model: "模型",
  noModel: "没有模型",
  settings: "设置",
  switchTheme: "浅色或深色",
  messages: "消息",
  welcome: "今天想聊点什么？",
  suggestions: [
    "给好奇的中学生讲讲，Transformer 是怎样阅读文字的。",
    "写一个合并两个有序列表的 Python 函数，并附上测试。",
    "把“早起的鸟儿有虫吃”译成英文，并给出最接近的谚语。",
  ],
  yourMessage: "输入消息",
  send: "发送",
  stop: "停止",
  toEnd: "回到底部",
  hint: "Enter 发送，Shift+Enter 换行，Esc 停止",
  system: "本次对话的系统提示",
  systemDefault: "使用模型默认",
  sampling: "采样",
  samplingNote: "留空则由模型决定。",
  temperature: "温度",
  top_p: "Top p",
  top_k: "Top k",
  repetition_penalty: "重复惩罚",
  max_tokens: "最多词元数",
  seed: "随机种子",
  default: "默认",
  key: "API 密钥",
  keyNote: "仅保存在此浏览器中，只发送给本服务器。",
  language: "语言",
  theme: "主题",
  themeSystem: "跟随系统",
  themeLight: "浅色",
  themeDark: "深色",
  exportAll: "全部导出",
  deleteAll: "全部删除",
  export: "导出",
  delete: "删除",
  deleted: "已删除。",
  undo: "撤销",
  copy: "复制",
  edit: "编辑",
  cancel: "取消",
  resend: "重新发送",
  again: "换一个回答",
  retry: "重试",
  you: "你",
  qwen: "Qwen",
  thinking: "思考过程",
  answering: "正在回答",
  stopped: "已停止。",
  interrupted: "回答中断。",
  length: "回答达到词元上限。",
  content_filter: "回答被过滤器截断。",
  noAnswer: "无法连接服务器，或回答中途断开。",
  wrongKey: "服务器需要 API 密钥。",
  storageFull: "浏览器存储已满，请导出并删除部分对话。",
};

const LANGUAGES = { en: ENGLISH, zh: CHINESE };
let current = ENGLISH;

export const preferred = () => (navigator.language.startsWith("zh") ? "zh" : "en");

export const word = (name) => current[name];

/** Speak a language, in everything that index.html marks with data-word, -label or -placeholder. */
export function speak(language) {
  current = LANGUAGES[language] ?? ENGLISH;
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-word]")) {
    node.textContent = current[node.dataset.word];
  }
  for (const node of document.querySelectorAll("[data-label]")) {
    node.ariaLabel = current[node.dataset.label];
    if (node.matches("button")) node.title = node.ariaLabel;
  }
  for (const node of document.querySelectorAll("[data-placeholder]")) {
    node.placeholder = current[node.dataset.placeholder];
  }
}
